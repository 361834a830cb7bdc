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
}

impl Pings {
    /// Reads ping's output.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut pings = Self::default();
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

    /// Mean time of a round trip, ns. Ping reads its clock in whole us before and after, so that its
    /// errors cancel on average.
    pub(crate) fn mean_ns(&self) -> Option<i64> {
        let count = i64::try_from(self.rtt_ns.len()).ok().filter(|&count| count > 0)?;
        Some(self.rtt_ns.iter().sum::<i64>() / count)
    }

    /// Requests that nobody answered.
    pub(crate) fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.rtt_ns.len() as u32)
    }
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
    /// What arrived, bytes of payload.
    pub(crate) bytes: u64,
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
        let number = |key: &str| received[key].as_f64();
        let missing = "iperf3's answer has no sum of what was received";
        Ok(Self {
            goodput: number("bits_per_second").ok_or(missing)?,
            bytes: number("bytes").ok_or(missing)? as u64,
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_read_to_the_microsecond() {
        let text = "PING 10.0.0.2 (10.0.0.2): 56 data bytes\n\
            64 bytes from 10.0.0.2: seq=0 ttl=64 time=0.674 ms\n\
            64 bytes from 10.0.0.2: seq=2 ttl=64 time=12.001 ms\n\n\
            --- 10.0.0.2 ping statistics ---\n\
            3 packets transmitted, 2 packets received, 33% packet loss\n";
        let pings = Pings::parse(text).unwrap();
        assert_eq!(pings.rtt_ns, [674_000, 12_001_000]);
        assert_eq!((pings.sent, pings.lost()), (3, 1));
        assert_eq!(pings.mean_ns(), Some(6_337_500));
        assert!(Pings::parse("ping: bad address").is_err());
        assert!(Pings::parse("x time=0.6x ms\n1 packets transmitted").is_err());
    }

    #[test]
    fn flows_are_read_and_errors_are_shown() {
        let json = r#"{"end":{"sum_sent":{"retransmits":3},
            "sum_received":{"bytes":1250000,"bits_per_second":1e7}}}"#;
        let flow = Flow { goodput: 1e7, bytes: 1_250_000, retransmits: 3 };
        assert_eq!(Flow::parse(json), Ok(flow));
        let refused = Flow::parse(r#"{"error":"unable to connect"}"#);
        assert_eq!(refused, Err("iperf3: unable to connect".to_owned()));
        assert!(Flow::parse("").is_err() && Flow::parse("{\"end\":{}}").is_err());
    }
}
