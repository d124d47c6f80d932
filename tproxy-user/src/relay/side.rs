//! The two ends of a flow.

/// Which of a flow's two sockets is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The accepted socket.
    Client,
    /// The socket that the relay connected.
    Upstream,
}

impl Side {
    /// The other end.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}
