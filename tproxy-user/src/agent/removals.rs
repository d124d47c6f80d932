//! Says when somebody removes what a living agent rests on.

use std::path::Path;

use log::error;

use super::start::Parts;
use crate::instance::AGENT_LOCK_FILE;

/// What is gone, and was said to be. It does not come back.
#[derive(Default)]
pub(super) struct Removals {
    pins: bool,
    files: bool,
}

impl Removals {
    /// Looks whether everything is there, and says what is not.
    pub(super) fn tell(&mut self, running: &Parts) {
        let instance = &running.instance;
        if !self.pins && !running.has_pins() {
            self.pins = true;
            say(&instance.usual_pins());
        }
        if !self.files && !instance.run_directory().join(AGENT_LOCK_FILE).exists() {
            self.files = true;
            say(instance.run_directory());
        }
    }
}

fn say(directory: &Path) {
    error!(
        "{}, or something in it, was removed: flows are taken as before while this agent lives, but rules and interfaces cannot be changed: restart the agent",
        directory.display()
    );
}
