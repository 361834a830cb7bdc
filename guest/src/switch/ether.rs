// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the switch looks at in a frame: addresses, the traffic class, the congestion bits, checksums.
//!
//! Everything is read from bytes that were copied out of the sender's reach. What does not parse is
//! left as it is: a switch forwards what it does not understand.

use core::fmt;

/// Bytes of the two addresses and the type.
pub const HEADER: usize = 14;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_SERVICE_VLAN: u16 = 0x88a8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// The congestion bits of the byte that was the type of service.
const CE: u8 = 3;

/// An Ethernet address: the first byte on the wire is the least significant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(u64);

impl Mac {
    const BITS: u64 = (1 << 48) - 1;

    /// The address in six bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// The number that stands for it, below 2^48.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Whether it stands for several stations: multicast and broadcast.
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// 01-80-C2-00-00-00 to -0F: what is said to the nearest bridge goes no further (802.1D 7.12.6).
    pub const fn is_link_local(self) -> bool {
        self.0 & 0xf0ff_ffff_ffff == Self::new([1, 0x80, 0xc2, 0, 0, 0]).0
    }

    /// Parses `00:16:3e:01:02:03`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len()))?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self::new(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, ..] = self.0.to_le_bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Destination and source of a frame as they lie there, to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    low: u64,
    high: u32,
}

impl Ends {
    /// Those of nothing.
    pub const NONE: Self = Self { low: 0, high: 0 };

    /// Those of a frame.
    #[inline]
    pub fn of(head: &[u8; HEADER]) -> Self {
        let low = head.first_chunk().map_or(0, |low| u64::from_le_bytes(*low));
        let high = head[8..].first_chunk().map_or(0, |high| u32::from_le_bytes(*high));
        Self { low, high }
    }

    /// Destination and source.
    #[inline]
    pub fn addresses(self) -> (Mac, Mac) {
        let from = self.low >> 48 | u64::from(self.high) << 16;
        (Mac(self.low & Mac::BITS), Mac(from))
    }

    /// A small number that is another for most other destinations.
    #[inline]
    pub fn hash(self) -> usize {
        (self.low >> 40) as u8 as usize
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The type behind all VLAN tags, where its payload begins, and the priority of the outer tag.
fn payload(head: &[u8]) -> Option<(u16, usize, Option<u8>)> {
    let (mut at, mut priority) = (HEADER - 2, None);
    for _ in 0..3 {
        let kind = be16(head, at)?;
        if kind != TYPE_VLAN && kind != TYPE_SERVICE_VLAN {
            return Some((kind, at + 2, priority));
        }
        let tag = be16(head, at + 2)?;
        priority.get_or_insert((tag >> 13) as u8);
        at += TAG;
    }
    None
}

/// Where the byte with traffic class and congestion bits is: the second of IPv4, and of IPv6 the
/// lower half of the first and the upper half of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    V4(usize),
    V6(usize),
}

fn class(head: &[u8]) -> Option<Class> {
    let (kind, at, _) = payload(head)?;
    let version = head.get(at)? >> 4;
    match (kind, version) {
        (TYPE_IPV4, 4) if head.len() >= at + 20 => Some(Class::V4(at)),
        (TYPE_IPV6, 6) if head.len() >= at + 40 => Some(Class::V6(at)),
        _ => None,
    }
}

/// The traffic class, 0 the most urgent: from the outer VLAN tag, or else from the IP header.
pub fn urgency(head: &[u8]) -> u8 {
    let precedence = match payload(head) {
        Some((_, _, Some(priority))) => priority,
        _ => match class(head) {
            Some(Class::V4(at)) => head[at + 1] >> 5,
            Some(Class::V6(at)) => head[at] << 4 >> 5,
            None => 0,
        },
    };
    7 - precedence
}

/// Whether it is a packet of IPv6.
pub fn is_ipv6(head: &[u8]) -> bool {
    matches!(class(head), Some(Class::V6(_)))
}

/// Whether the sender lets switches mark this frame.
pub fn is_markable(head: &[u8]) -> bool {
    match class(head) {
        Some(Class::V4(at)) => head[at + 1] & CE != 0,
        Some(Class::V6(at)) => head[at + 1] >> 4 & CE != 0,
        None => false,
    }
}

/// Sets "congestion experienced", if [`is_markable`]; returns whether it is set now.
pub fn mark(head: &mut [u8]) -> bool {
    if !is_markable(head) {
        return false;
    }
    match class(head) {
        Some(Class::V4(at)) => {
            let old = head[at + 1];
            head[at + 1] = old | CE;
            // RFC 1624: ~(~sum + ~old + new), on the word of the changed byte.
            let sum = be16(head, at + 10).unwrap_or(0);
            let word = |low: u8| u32::from(u16::from_be_bytes([head[at], low]));
            let new = fold(u32::from(!sum) + (0xffff - word(old)) + word(old | CE));
            head[at + 10..at + 12].copy_from_slice(&(!new).to_be_bytes());
        }
        Some(Class::V6(at)) => head[at + 1] |= CE << 4,
        None => {}
    }
    true
}

const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where the sum of a frame has to be put, and over what it goes.
///
/// A guest leaves the sum to the hardware: the field holds the sum of the pseudo header, and the rest
/// is added by whoever cannot pass the frame on unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blank {
    /// The first byte that counts.
    pub start: usize,
    /// Where the sum goes.
    pub field: usize,
    /// Of the bytes in the frame, those from here on are padding.
    pub end: usize,
    udp: bool,
}

/// What is to be summed in a frame of which this is the beginning; `None` if it is no TCP or UDP.
pub fn blank(head: &[u8]) -> Option<Blank> {
    let (kind, at, _) = payload(head)?;
    let (protocol, start, end) = match (kind, class(head)?) {
        (TYPE_IPV4, Class::V4(_)) => {
            let length = usize::from(head[at] & 15) * 4;
            (head[at + 9], at + length, at + usize::from(be16(head, at + 2)?))
        }
        (TYPE_IPV6, Class::V6(_)) => {
            (head[at + 6], at + 40, at + 40 + usize::from(be16(head, at + 4)?))
        }
        _ => return None,
    };
    let (field, udp) = match protocol {
        PROTOCOL_TCP => (start + 16, false),
        PROTOCOL_UDP => (start + 6, true),
        _ => return None,
    };
    (field + 2 <= head.len() && field + 2 <= end).then_some(Blank { start, field, end, udp })
}

/// The sum of pieces of a frame, in network order; all pieces but the last have an even length.
pub struct Sum(u64);

impl Sum {
    /// Nothing yet.
    pub const ZERO: Self = Self(0);

    /// Adds a piece.
    pub fn add(&mut self, piece: &[u8]) {
        let (words, rest) = piece.as_chunks::<2>();
        self.0 += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        if let [last] = rest {
            self.0 += u64::from(*last) << 8;
        }
    }

    /// The value for the field that `blank` names, which was summed with the rest.
    pub fn finish(self, blank: Blank) -> [u8; 2] {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        match !fold((sum & 0xffff) as u32 + (sum >> 16) as u32) {
            // No sum at all, to UDP.
            0 if blank.udp => [0xff; 2],
            sum => sum.to_be_bytes(),
        }
    }
}

/// Packets for tests.
#[cfg(test)]
pub mod fake {
    use super::*;

    /// The one's complement sum, as defined: over 16-bit words, with the carries added.
    pub fn sum(bytes: &[u8]) -> u16 {
        let words =
            bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
        words.fold(0u16, |sum, word| {
            let sum = u32::from(sum) + word;
            (sum & 0xffff) as u16 + (sum >> 16) as u16
        })
    }

    /// An IPv4 packet whose TCP or UDP sum is that of the pseudo header, as a guest leaves it.
    pub fn ipv4(tos: u8, protocol: u8, data: &[u8]) -> Vec<u8> {
        let transport = if protocol == PROTOCOL_TCP { 20 } else { 8 };
        let length = 20 + transport + data.len();
        let mut ip = vec![0x45, tos, (length >> 8) as u8, length as u8, 0, 1, 0, 0, 64, protocol];
        ip.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let header = !sum(&ip);
        ip[10..12].copy_from_slice(&header.to_be_bytes());
        let mut pseudo = ip[12..20].to_vec();
        pseudo.extend([0, protocol]);
        pseudo.extend(((transport + data.len()) as u16).to_be_bytes());
        let mut l4: Vec<u8> = (0..transport as u8).collect();
        let field = if protocol == PROTOCOL_TCP { 16 } else { 6 };
        l4[field..field + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
        ip.extend(l4);
        ip.extend(data);
        ip
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{ipv4, sum};
    use super::*;
    use proptest::prelude::*;

    const TO: [u8; 6] = [0x00, 0x16, 0x3e, 1, 2, 3];

    fn frame(tags: &[u16], kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = TO.to_vec();
        bytes.extend([0x00, 0x16, 0x3e, 4, 5, 6]);
        for tag in tags {
            bytes.extend(TYPE_VLAN.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(kind.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn addresses_are_read_and_printed_as_on_the_wire() {
        let head = frame(&[], TYPE_IPV4, &[]);
        let head = head[..HEADER].try_into().unwrap();
        let (to, from) = Ends::of(head).addresses();
        assert_eq!(
            (to.to_string(), from.to_string()),
            ("00:16:3e:01:02:03".into(), "00:16:3e:04:05:06".into())
        );
        assert_eq!((Mac::parse("00:16:3E:1:2:03"), Mac::new(TO)), (Some(to), to));
        for wrong in [
            "",
            "00:16:3e:01:02",
            "00:16:3e:01:02:03:04",
            "00:16:3e:01:02:xx",
            "::::::",
            "001:6:3e:1:2:3",
        ] {
            assert_eq!(Mac::parse(wrong), None, "{wrong}");
        }
        assert!(Mac::new([0xff; 6]).is_group() && Mac::new([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(!to.is_group());
        for last in 0..=255 {
            let mac = Mac::new([1, 0x80, 0xc2, 0, 0, last]);
            assert_eq!(mac.is_link_local(), last < 16);
        }
    }

    #[test]
    fn the_class_is_the_tags_or_else_the_packets() {
        assert_eq!(urgency(&frame(&[], 0x0806, &[0; 28])), 7);
        assert_eq!(urgency(&frame(&[5 << 13 | 100], 0x0806, &[0; 28])), 2);
        assert_eq!(urgency(&frame(&[], TYPE_IPV4, &ipv4(6 << 5, PROTOCOL_TCP, b""))), 1);
        assert_eq!(urgency(&frame(&[0], TYPE_IPV4, &ipv4(6 << 5, PROTOCOL_TCP, b""))), 7);
        let mut v6 = vec![0x6c, 0x20, 0, 0, 0, 0, 59, 64];
        v6.extend([0; 32]);
        assert_eq!(urgency(&frame(&[], TYPE_IPV6, &v6)), 7 - 6);
    }

    #[test]
    fn a_mark_keeps_the_header_sum_right_and_touches_nothing_else() {
        for tos in 0..=255 {
            for tags in [&[][..], &[1], &[1, 2]] {
                let old = frame(tags, TYPE_IPV4, &ipv4(tos, PROTOCOL_TCP, b"data"));
                let mut new = old.clone();
                let markable = tos & 3 != 0;
                assert_eq!((is_markable(&old), mark(&mut new)), (markable, markable));
                let ip = HEADER + TAG * tags.len();
                assert_eq!(sum(&new[ip..ip + 20]), 0xffff);
                assert_eq!(new[ip + 1], if markable { tos | 3 } else { tos });
                new[ip + 1] = old[ip + 1];
                new[ip + 10..ip + 12].copy_from_slice(&old[ip + 10..ip + 12]);
                assert_eq!(new, old);
            }
        }
        let mut v6 = vec![0x60, 0x10, 0, 0, 0, 0, 59, 64];
        v6.extend([0; 32]);
        let mut bytes = frame(&[], TYPE_IPV6, &v6);
        assert!(mark(&mut bytes));
        assert_eq!(bytes[HEADER + 1], 0x30);
    }

    proptest! {
        #[test]
        fn a_finished_sum_is_one_that_a_receiver_accepts(
            data in proptest::collection::vec(any::<u8>(), 0..3000), tcp: bool, padding in 0usize..20, cut in 20usize..40
        ) {
            let protocol = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
            let ip = ipv4(0, protocol, &data);
            let mut bytes = frame(&[], TYPE_IPV4, &ip);
            bytes.extend(vec![0xaa; padding]);
            let blank = blank(&bytes).unwrap();
            prop_assert_eq!(blank.end, HEADER + ip.len());
            let mut total = Sum::ZERO;
            // In two pieces, as in two buffers.
            let middle = (blank.start + 2 * cut).min(blank.end);
            let middle = if middle == blank.end { blank.start } else { middle };
            total.add(&bytes[blank.start..middle]);
            total.add(&bytes[middle..blank.end]);
            let value = total.finish(blank);
            bytes[blank.field..blank.field + 2].copy_from_slice(&value);
            // Over pseudo header and all, a right sum gives all ones.
            let mut all = ip[12..20].to_vec();
            all.extend([0, protocol]);
            all.extend(((ip.len() - 20) as u16).to_be_bytes());
            all.extend(&bytes[blank.start..blank.end]);
            prop_assert_eq!(sum(&all), 0xffff);
            prop_assert!(tcp || value != [0, 0]);
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..80, data: bool) {
            if data {
                let mut whole = frame(&[], TYPE_IPV4, &ipv4(2, PROTOCOL_TCP, b"x"));
                whole.truncate(cut);
                for (at, byte) in bytes.iter().enumerate() {
                    if let Some(to) = whole.get_mut(at * 3) {
                        *to ^= byte & 0x10;
                    }
                }
                bytes = whole;
            }
            let _ = urgency(&bytes);
            let _ = mark(&mut bytes);
            if let Some(blank) = blank(&bytes) {
                prop_assert!(blank.field + 2 <= bytes.len() && blank.start <= blank.field);
            }
        }
    }
}
