//! Standard output: lines, tables and JSON. A reader that goes away is no error.

use std::{
    fmt::Display,
    io::{self, BufWriter, Write as _},
};

use comfy_table::{Table, presets};
use serde::Serialize;

/// Prints a line.
pub(super) fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").map_err(Into::into)
}

/// Prints many lines.
pub(super) fn print_lines(lines: impl IntoIterator<Item = impl Display>) -> anyhow::Result<()> {
    let mut output = BufWriter::new(io::stdout().lock());
    for line in lines {
        writeln!(output, "{line}")?;
    }
    output.flush().map_err(Into::into)
}

/// Prints one JSON document.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// A table with these headings and nothing but white space between its columns.
pub(super) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
        .set_header(headings.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
