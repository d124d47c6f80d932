//! A filter that the kernel runs while it lists sockets: those of some local ports
//! (`INET_DIAG_REQ_BYTECODE`, `linux/inet_diag.h`). Of thousands of sockets only the few wanted ones
//! are then written, copied and read.

use std::collections::BTreeSet;

/// The attribute's type.
const REQUEST_BYTECODE: u16 = 1;

/// `INET_DIAG_BC_JMP`: goes on at `no`.
const JUMP: u8 = 1;

/// `INET_DIAG_BC_S_EQ`: compares the socket's own port with that in the next operation's `no`.
const LOCAL_PORT_IS: u8 = 11;

/// Octets of an operation: code, `yes`, and `no`, the latter two in octets to go on from its start.
const OPERATION: u16 = 4;

/// Octets that one port takes: a comparison, its port and a jump.
const PORT: u16 = 3 * OPERATION;

/// Ports that a filter can name: its length and its jumps are 16-bit numbers.
const PORTS: usize = 4096;

/// The attribute for a request that is to list sockets of these ports alone. `None` when there are
/// too many: then all are listed.
pub(super) fn attribute(ports: &BTreeSet<u16>) -> Option<Vec<u8>> {
    if ports.is_empty() || ports.len() > PORTS {
        return None;
    }
    let program = program(ports);
    let length = u16::try_from(program.len()).ok()?.checked_add(4)?;
    let mut attribute = Vec::with_capacity(length.into());
    attribute.extend(length.to_ne_bytes());
    attribute.extend(REQUEST_BYTECODE.to_ne_bytes());
    attribute.extend(program);
    Some(attribute)
}

/// A socket passes where the program ends exactly at its end, and not where it jumps beyond.
fn program(ports: &BTreeSet<u16>) -> Vec<u8> {
    let mut program = Vec::new();
    let mut behind = u16::try_from(ports.len()).unwrap_or_default();
    for port in ports {
        behind -= 1;
        // One that has the port comes to the jump behind it, one that has not to the next port. The
        // last has nothing behind it: there yes is the end, and no is one operation beyond.
        operation(&mut program, LOCAL_PORT_IS, 2 * OPERATION, PORT);
        operation(&mut program, 0, 0, *port);
        if behind > 0 {
            // The last port has no jump, which is as long as this one.
            operation(&mut program, JUMP, OPERATION, behind * PORT);
        }
    }
    program
}

fn operation(program: &mut Vec<u8>, code: u8, yes: u16, no: u16) {
    program.push(code);
    program.push(yes.to_le_bytes()[0]);
    program.extend(no.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `inet_diag_bc_run` does it.
    fn passes(program: &[u8], port: u16) -> bool {
        let number = |place: usize| u16::from_ne_bytes([program[place], program[place + 1]]);
        let mut place = 0;
        while place < program.len() {
            let yes = match program[place] {
                LOCAL_PORT_IS => number(place + 6) == port,
                JUMP => false,
                other => panic!("operation {other}"),
            };
            place += if yes {
                program[place + 1].into()
            } else {
                usize::from(number(place + 2))
            };
        }
        place == program.len()
    }

    #[test]
    fn sockets_of_the_ports_pass_and_no_others() {
        for ports in [vec![80], vec![80, 443], (1000..1100).collect::<Vec<_>>()] {
            let ports = BTreeSet::from_iter(ports);
            let program = program(&ports);
            for port in [1, 79, 80, 81, 443, 999, 1000, 1050, 1099, 1100, 65_535] {
                assert_eq!(passes(&program, port), ports.contains(&port), "port {port}");
            }
        }
    }

    #[test]
    fn too_many_ports_make_no_filter() {
        assert!(attribute(&BTreeSet::new()).is_none());
        assert!(attribute(&(1..=4096).collect()).is_some());
        assert!(attribute(&(1..=4097).collect()).is_none());
    }
}
