//! What the agent tells the kernel programs about itself while they run.

/// State of the agent, the only entry of the `AGENT` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentState {
    workers: u32,
    port: u16,
    accepting: u16,
}

const _: () = assert!(size_of::<AgentState>() == 8);

impl AgentState {
    /// An agent that takes flows with `workers` workers, all listening on `port`.
    #[must_use]
    pub const fn accepting(workers: u32, port: u16) -> Self {
        Self {
            workers,
            port,
            accepting: 1,
        }
    }

    /// The same agent after it stopped taking new flows.
    #[must_use]
    pub const fn draining(self) -> Self {
        Self {
            accepting: 0,
            ..self
        }
    }

    /// Number of workers, zero when no agent ever registered.
    #[must_use]
    #[inline(always)]
    pub const fn workers(&self) -> u32 {
        self.workers
    }

    /// The port that every worker listens on, in host byte order; zero when there is none.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether new flows are taken. An agent that drains leaves new ones alone.
    #[must_use]
    #[inline(always)]
    pub const fn is_accepting(&self) -> bool {
        self.accepting != 0
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for AgentState {}
