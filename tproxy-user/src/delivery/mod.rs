//! Delivery: the policy rules and local routes that bring marked packets to this host's sockets.
