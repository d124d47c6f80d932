//! What is measured, with its unit.

use serde::Serialize;

use super::grouped::grouped;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Quantity {
    Throughput,
    ProxyCpuPerGigabyte,
    MachineCpuPerGigabyte,
    Connections,
    ProxyCpuPerConnection,
    MachineCpuPerConnection,
    FirstByteP50,
    FirstByteP99,
    SynRetransmits,
    Failures,
    EchoP50,
    EchoP99,
    MemoryPerFlow,
    DescriptorsPerFlow,
    UserMemoryHeld,
    PipeMemoryHeld,
    TakenFromSender,
    ConnectionsOneCidr,
    ConnectionsMillionCidrs,
    MillionToOne,
    MillionLoadedIn,
    ReadyAfter,
    Resident,
    ProgramSize,
    Datagrams,
    ProxyCpuPerDatagram,
    MachineCpuPerDatagram,
    DatagramsLost,
    ConnectHook,
    HooksPerConnect,
    ConnectP50,
    ConnectP99,
}

impl Quantity {
    /// Name, unit, digits after the point.
    fn description(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Throughput => ("throughput", "Gbit/s", 1),
            Self::ProxyCpuPerGigabyte => ("CPU of the proxy", "s/GB", 2),
            Self::MachineCpuPerGigabyte => ("CPU of the machine", "s/GB", 2),
            Self::Connections => ("connections", "1/s", 0),
            Self::ProxyCpuPerConnection => ("CPU of the proxy", "µs each", 0),
            Self::MachineCpuPerConnection => ("CPU of the machine", "µs each", 0),
            Self::FirstByteP50 => ("first byte, p50", "µs", 0),
            Self::FirstByteP99 => ("first byte, p99", "µs", 0),
            Self::SynRetransmits => ("SYN retransmits", "in all", 0),
            Self::Failures => ("failed", "in all", 0),
            Self::EchoP50 => ("p50", "µs", 1),
            Self::EchoP99 => ("p99", "µs", 1),
            Self::MemoryPerFlow => ("user memory a flow", "bytes", 0),
            Self::DescriptorsPerFlow => ("descriptors a flow", "", 2),
            Self::UserMemoryHeld => ("user memory held", "MB", 2),
            Self::PipeMemoryHeld => ("pipe memory held", "MB", 2),
            Self::TakenFromSender => ("taken from the sender", "MB", 1),
            Self::ConnectionsOneCidr => ("connections, 1 CIDR", "1/s", 0),
            Self::ConnectionsMillionCidrs => ("connections, 1,000,000 CIDRs", "1/s", 0),
            Self::MillionToOne => ("the latter to the former", "x", 2),
            Self::MillionLoadedIn => ("1,000,000 loaded in", "s", 2),
            Self::ReadyAfter => ("start to ready", "ms", 0),
            Self::Resident => ("memory at rest", "MB", 1),
            Self::ProgramSize => ("program file", "MB", 1),
            Self::Datagrams => ("echoes", "1/s", 0),
            Self::ProxyCpuPerDatagram => ("CPU of the proxy", "µs each way", 2),
            Self::MachineCpuPerDatagram => ("CPU of the machine", "µs each way", 2),
            Self::DatagramsLost => ("lost", "in all", 0),
            Self::ConnectHook => ("the connect hook", "ns", 0),
            Self::HooksPerConnect => ("all hooks of a connection", "ns", 0),
            Self::ConnectP50 => ("connect(2), p50", "µs", 1),
            Self::ConnectP99 => ("connect(2), p99", "µs", 1),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.description().0
    }

    pub(crate) fn unit(self) -> &'static str {
        self.description().1
    }

    /// With as many digits as it is worth.
    pub(crate) fn text(self, value: f64) -> String {
        let digits = self.description().2;
        if digits == 0 && value >= 1_000.0 {
            grouped(value)
        } else {
            // Noise around nothing is no negative amount.
            let value = if value.abs() < 0.5 * 10_f64.powi(-digits_of(digits)) {
                0.0
            } else {
                value
            };
            format!("{value:.digits$}")
        }
    }

    /// Whether rounds are summed up: of what should never happen, a median would hide what does.
    pub(crate) fn is_summed(self) -> bool {
        matches!(
            self,
            Self::SynRetransmits | Self::Failures | Self::DatagramsLost
        )
    }

    /// Whether more is better.
    pub(crate) fn is_gain(self) -> bool {
        matches!(
            self,
            Self::Throughput
                | Self::Connections
                | Self::ConnectionsOneCidr
                | Self::ConnectionsMillionCidrs
                | Self::MillionToOne
                | Self::Datagrams
        )
    }
}

fn digits_of(digits: usize) -> i32 {
    i32::try_from(digits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn texts_have_the_digits_of_their_quantity() {
        assert_eq!(Quantity::Throughput.text(15.849), "15.8");
        assert_eq!(Quantity::Connections.text(12_345.6), "12,346");
        assert_eq!(Quantity::Connections.text(999.4), "999");
        assert_eq!(Quantity::UserMemoryHeld.text(-0.001), "0.00");
    }
}
