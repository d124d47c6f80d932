//! Says when somebody removes what a living agent rests on.

use log::error;

use super::start::Parts;

/// What is gone, and was said to be. It does not come back.
#[derive(Default)]
pub(super) struct Removals {
    pins: bool,
}

impl Removals {
    /// Looks whether everything is there, and says what is not.
    pub(super) fn tell(&mut self, running: &Parts) {
        if !self.pins && !running.has_pins() {
            self.pins = true;
            error!(
                "{}, or something in it, was removed: flows are taken as before while this agent lives, but rules and interfaces cannot be changed: restart the agent",
                running.instance.usual_pins().display()
            );
        }
    }
}
