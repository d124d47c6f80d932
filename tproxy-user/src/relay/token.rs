//! What an event of the poll is about, packed into mio's token.

use mio::Token;

use super::side::Side;

/// The origin of an event. A flow's key is its place in the worker's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Connections wait to be accepted.
    Listener,
    /// Datagrams wait at the worker's own socket.
    Datagrams,
    /// Another thread has a command for this worker.
    Waker,
    /// One socket of a flow.
    Flow { key: usize, side: Side },
    /// One socket of a session. Its key is its place in a table of its own.
    Session { key: usize, side: Side },
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const DATAGRAMS: Token = Token(usize::MAX - 2);

/// Set in the token of a socket of a session, and not in that of a flow.
const SESSION: usize = 0b10;
/// Set in the token of a socket on the side of upstream.
const UPSTREAM: usize = 0b01;
const KEY_SHIFT: u32 = 2;

impl From<Origin> for Token {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Listener => LISTENER,
            Origin::Waker => WAKER,
            Origin::Datagrams => DATAGRAMS,
            Origin::Flow { key, side } => Self(key << KEY_SHIFT | bit(side)),
            Origin::Session { key, side } => Self(key << KEY_SHIFT | SESSION | bit(side)),
        }
    }
}

impl From<Token> for Origin {
    fn from(token: Token) -> Self {
        match token {
            LISTENER => Self::Listener,
            WAKER => Self::Waker,
            DATAGRAMS => Self::Datagrams,
            Token(packed) => {
                let key = packed >> KEY_SHIFT;
                let side = if packed & UPSTREAM == 0 {
                    Side::Client
                } else {
                    Side::Upstream
                };
                if packed & SESSION == 0 {
                    Self::Flow { key, side }
                } else {
                    Self::Session { key, side }
                }
            }
        }
    }
}

fn bit(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Upstream => UPSTREAM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_origin_survives_the_packing() {
        let sockets = [0, 1, 2, 1 << 40].into_iter().flat_map(|key| {
            [Side::Client, Side::Upstream]
                .into_iter()
                .flat_map(move |side| [Origin::Flow { key, side }, Origin::Session { key, side }])
        });
        let others = [Origin::Listener, Origin::Datagrams, Origin::Waker];
        for origin in sockets.chain(others) {
            assert_eq!(Origin::from(Token::from(origin)), origin);
        }
    }
}
