//! What an event of the poll is about, packed into mio's token.

use mio::Token;

use super::side::Side;

/// The origin of an event. A flow's key is its place in the worker's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Connections wait to be accepted.
    Listener,
    /// Another thread has a command for this worker.
    Waker,
    /// One socket of a flow.
    Flow { key: usize, side: Side },
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

impl From<Origin> for Token {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Listener => LISTENER,
            Origin::Waker => WAKER,
            Origin::Flow {
                key,
                side: Side::Client,
            } => Self(key << 1),
            Origin::Flow {
                key,
                side: Side::Upstream,
            } => Self(key << 1 | 1),
        }
    }
}

impl From<Token> for Origin {
    fn from(token: Token) -> Self {
        match token {
            LISTENER => Self::Listener,
            WAKER => Self::Waker,
            Token(packed) => Self::Flow {
                key: packed >> 1,
                side: if packed & 1 == 0 {
                    Side::Client
                } else {
                    Side::Upstream
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_origin_survives_the_packing() {
        let flows = [0, 1, 2, 1 << 40].into_iter().flat_map(|key| {
            [Side::Client, Side::Upstream]
                .into_iter()
                .map(move |side| Origin::Flow { key, side })
        });
        for origin in flows.chain([Origin::Listener, Origin::Waker]) {
            assert_eq!(Origin::from(Token::from(origin)), origin);
        }
    }
}
