//! Emphasis for people, left out where the output is not a terminal or `NO_COLOR` is set.

use std::{
    env,
    io::{self, IsTerminal as _},
    sync::LazyLock,
};

static STYLED: LazyLock<bool> = LazyLock::new(|| {
    env::var_os("NO_COLOR").is_none() && io::stdout().is_terminal() && io::stderr().is_terminal()
});

/// For what is beside the point.
pub(crate) fn dim(text: &str) -> String {
    styled("2", text)
}

/// For headings.
pub(crate) fn bold(text: &str) -> String {
    styled("1", text)
}

/// For what went well.
pub(crate) fn green(text: &str) -> String {
    styled("32", text)
}

/// For what failed.
pub(crate) fn red(text: &str) -> String {
    styled("31", text)
}

fn styled(code: &str, text: &str) -> String {
    if *STYLED {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}
