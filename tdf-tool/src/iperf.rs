// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the stock tools of a host say: busybox's ping, and iperf3's JSON.

use serde_json::Value;

/// What a ping found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pings {
    /// The round trips' times in the order of their ends, ns.
    pub(crate) rtt_ns: Vec<i64>,
    /// Requests.
    pub(crate) sent: u32,
    /// Replies that the host has got, ping or not.
    pub(crate) replies: u32,
}

impl Pings {
    /// Shows the host's counters of ICMP, before a ping and behind it. Busybox's ping lets its socket
    /// hold three replies: of four that come at once it misses one, which no network has lost.
    pub(crate) const COUNTERS: &str = "grep ^Icmp: /proc/net/snmp";

    /// Reads ping's output between [`Self::COUNTERS`].
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut pings = Self::default();
        let (before, after) = text.split_once("PING ").unwrap_or(("", text));
        let replies = |text| netstat(text, "Icmp:", "InEchoReps");
        let got = replies(after).zip(replies(before)).map(|(after, before)| after - before);
        let got = got.ok_or("the host counts no replies to its pings")?;
        pings.replies = u32::try_from(got).map_err(|_| "the host counts replies backwards")?;
        for line in text.lines() {
            if let Some((_, time)) = line.split_once(" time=") {
                pings.rtt_ns.push(milliseconds(time).ok_or_else(|| unknown(line))?);
            }
            if let Some((sent, _)) = line.split_once(" packets transmitted") {
                pings.sent = sent.trim().parse().map_err(|_| unknown(line))?;
            }
        }
        match pings.sent {
            0 => Err(unknown(text.lines().last().unwrap_or_default())),
            _ => Ok(pings),
        }
    }

    /// The round trip in the middle of all by its time, ns: not the mean, of which a single one that
    /// had to wait for something else on its processor can be more than all others together.
    pub(crate) fn typical_ns(&self) -> Option<i64> {
        let mut sorted = self.rtt_ns.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// Requests to which no reply has come.
    pub(crate) const fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.replies)
    }
}

/// The counter `name` of the table `table` in `/proc/net/netstat` or `snmp`, which has a line of
/// names and one of values.
pub(crate) fn netstat(text: &str, table: &str, name: &str) -> Option<i64> {
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

fn unknown(line: &str) -> String {
    format!("ping says {:?}, which is not understood", crate::dom0::printable(line))
}

/// `0.674 ms`, exactly.
fn milliseconds(text: &str) -> Option<i64> {
    let number = text.trim().strip_suffix("ms")?.trim();
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if part.len() > 6 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part: i64 = format!("{part:0<6}").parse().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(part)
}

/// What iperf3 found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Flow {
    /// What arrived, bits of payload in a second.
    pub(crate) goodput: f64,
    /// Segments sent again.
    pub(crate) retransmits: u64,
}

impl Flow {
    /// Reads the JSON that an iperf3 client gives.
    ///
    /// # Errors
    /// It is none, or iperf3 failed.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let begin = text.find('{').ok_or("iperf3 says nothing")?;
        let json: Value = serde_json::from_str(&text[begin..])
            .map_err(|e| format!("iperf3's answer is not understood: {e}"))?;
        if let Some(error) = json["error"].as_str() {
            return Err(format!("iperf3: {}", crate::dom0::printable(error)));
        }
        let end = &json["end"];
        let received = match &end["sum_received"] {
            Value::Null => &end["sum"],
            sum => sum,
        };
        let goodput = received["bits_per_second"].as_f64();
        Ok(Self {
            goodput: goodput.ok_or("iperf3's answer has no sum of what was received")?,
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_read_to_the_microsecond() {
        let text = "Icmp: InMsgs InEchoReps\nIcmp: 9 7\n\
            PING 10.0.0.2 (10.0.0.2): 56 data bytes\n\
            64 bytes from 10.0.0.2: seq=0 ttl=64 time=0.674 ms\n\
            64 bytes from 10.0.0.2: seq=2 ttl=64 time=12.001 ms\n\n\
            --- 10.0.0.2 ping statistics ---\n\
            3 packets transmitted, 2 packets received, 33% packet loss\n";
        let with = |replies| format!("{text}Icmp: InMsgs InEchoReps\nIcmp: 20 {replies}");
        let pings = Pings::parse(&with(9)).unwrap();
        assert_eq!(pings.rtt_ns, [674_000, 12_001_000]);
        assert_eq!((pings.sent, pings.lost()), (3, 1));
        assert_eq!(pings.typical_ns(), Some(12_001_000));
        // One had no room in ping's socket; one came twice.
        assert_eq!(Pings::parse(&with(10)).unwrap().lost(), 0);
        assert_eq!(Pings::parse(&with(11)).unwrap().lost(), 0);
        assert!(Pings::parse(text).is_err() && Pings::parse(&with(6)).is_err());
        assert!(Pings::parse("ping: bad address").is_err());
        assert!(Pings::parse(&with(9).replace("0.674", "0.6x")).is_err());
    }

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InCEPkts Y\nIpExt: 7 8 9\n";
        assert_eq!(netstat(text, "IpExt:", "InCEPkts"), Some(8));
        assert_eq!(netstat(text, "IpExt:", "Z"), None);
    }

    #[test]
    fn flows_are_read_and_errors_are_shown() {
        let json = r#"{"end":{"sum_sent":{"retransmits":3},
            "sum_received":{"bytes":1250000,"bits_per_second":1e7}}}"#;
        let flow = Flow { goodput: 1e7, retransmits: 3 };
        assert_eq!(Flow::parse(json), Ok(flow));
        let refused = Flow::parse(r#"{"error":"unable to connect"}"#);
        assert_eq!(refused, Err("iperf3: unable to connect".to_owned()));
        assert!(Flow::parse("").is_err() && Flow::parse("{\"end\":{}}").is_err());
    }
}
