#![no_std]
//! Types, packet parser and classifier shared by the kernel programs and the agent.
