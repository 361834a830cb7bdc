// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf arrivals`: when frames arrive at an interface of this machine, by its own clock; and
//! `tdf goodput`: what of a TCP flow arrives in order, in what time.
//!
//! Linux stamps each frame as its driver hands it over. Only times between frames are shown: they
//! are what a program in the guest can know of its network.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::dom0::printable;

/// A socket that hears all frames of one interface.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// All protocols, as the link layer writes it.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Frames that may wait for us, bytes.
const ROOM: libc::c_int = 8 << 20;
/// The longest headers up to TCP's, bytes.
const HEADERS: usize = 14 + 60 + 60;
/// TCP's flags for the end of a connection: FIN and RST.
const ENDS: u8 = 0x05;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Listener {
    /// Listens on `interface`.
    ///
    /// # Errors
    /// There is none of the name, or no right.
    pub fn new(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: a call without pointers; the descriptor is new and nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            OwnedFd::from_raw_fd(checked(fd)?)
        };
        // SAFETY: `name` is a C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let on: libc::c_int = 1;
        for (option, value) in [(libc::SO_TIMESTAMPNS, on), (libc::SO_RCVBUFFORCE, ROOM)] {
            // SAFETY: `value` is valid for reading its size.
            checked(unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            })?;
        }
        // SAFETY: sockaddr_ll is plain numbers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ALL;
        address.sll_ifindex = index as libc::c_int;
        // SAFETY: `address` is valid for reading its size.
        checked(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })?;
        Ok(Self(socket))
    }

    /// Waits for the next frame that comes in and is longer than `longer` bytes: when it came, ns
    /// since 1970.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn next(&mut self, longer: usize) -> io::Result<i64> {
        loop {
            let (length, kind, time) = self.receive(&mut [0])?;
            if kind != libc::PACKET_OUTGOING && length > longer {
                return Ok(time);
            }
        }
    }

    /// Fails if frames came and went for which there was no room.
    ///
    /// # Errors
    /// So it was.
    pub fn complete(&self) -> io::Result<()> {
        // SAFETY: plain numbers, for which zero is valid.
        let mut counted: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: `counted` is valid for writing `length` bytes.
        checked(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counted).cast(),
                &raw mut length,
            )
        })?;
        match counted.tp_drops {
            0 => Ok(()),
            missed => Err(io::Error::other(format!("{missed} frames were missed"))),
        }
    }

    /// The next frame's length, direction and stamp; `bytes` are filled with its beginning.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<(usize, u8, i64)> {
        let mut control = [0u64; 16];
        // SAFETY: both are plain numbers and null pointers, which are valid.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let fd = self.0.as_raw_fd();
        // SAFETY: all that `message` points to is valid for writing, with the lengths that it says.
        // MSG_TRUNC tells the whole length.
        let length = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_TRUNC) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled `message` in; the first control message, if there is one,
        // lies within `control`, which is aligned for it.
        let time = unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            if first.is_null() || (*first).cmsg_type != libc::SCM_TIMESTAMPNS {
                return Err(io::Error::other("this Linux does not stamp frames"));
            }
            libc::CMSG_DATA(first).cast::<libc::timespec>().read_unaligned()
        };
        let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
        Ok((length as usize, from.sll_pkttype, ns))
    }
}

/// The gaps between `frames` frames that are longer than `longer` bytes, ns, one in a line.
///
/// # Errors
/// As [`Listener::new`] and [`Listener::next`].
pub fn gaps(interface: &str, frames: u32, longer: usize) -> io::Result<String> {
    let mut listener = Listener::new(interface)?;
    let mut gaps = String::new();
    let mut last = listener.next(longer)?;
    for _ in 1..frames {
        let now = listener.next(longer)?;
        gaps.push_str(&format!("{}\n", now - last));
        last = now;
    }
    listener.complete()?;
    Ok(gaps)
}

/// The TCP flow that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Who sends.
    pub from: Ipv4Addr,
    /// The port that it sends to.
    pub port: u16,
    /// The flow begins with the first segment in a frame of more bytes; so it is not that of a
    /// program's control connection.
    pub longer: usize,
    /// Time at its beginning that does not count, ns.
    pub after_ns: i64,
}

/// What of a TCP flow arrived in order between two moments, at each of which some did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goodput {
    /// Bytes that came into order after the first moment, up to the second.
    pub bytes: u64,
    /// Time between them, ns.
    pub ns: i64,
}

impl fmt::Display for Goodput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bytes, self.ns)
    }
}

impl Goodput {
    /// Reads what `tdf goodput` shows.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let (bytes, ns) = text.trim().split_once(' ')?;
            Some(Self { bytes: bytes.parse().ok()?, ns: ns.parse().ok().filter(|&ns| ns > 0)? })
        };
        read().ok_or_else(|| format!("no flow came in order: {:?}", printable(text)))
    }

    /// Bits of payload in a second.
    pub(crate) fn bits_per_second(self) -> i64 {
        let bits = i128::from(self.bytes) * 8 * 1_000_000_000 / i128::from(self.ns.max(1));
        i64::try_from(bits).unwrap_or(i64::MAX)
    }
}

/// Waits for a TCP flow, and for its end.
///
/// # Errors
/// As [`Listener::new`], [`Listener::next`] and [`Listener::complete`].
pub fn goodput(interface: &str, wanted: Wanted) -> io::Result<Goodput> {
    let mut listener = Listener::new(interface)?;
    let mut flow = Flow::new(wanted);
    let mut bytes = [0; HEADERS];
    loop {
        let (length, _, time) = listener.receive(&mut bytes)?;
        if flow.frame(&bytes[..length.min(HEADERS)], length, time) {
            listener.complete()?;
            return Ok(flow.goodput());
        }
    }
}

/// What is read of a TCP segment.
struct Segment {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    sequence: u32,
    flags: u8,
    /// Bytes of payload.
    payload: u32,
}

impl Segment {
    /// Reads the headers with which a frame begins; `None`: it is no TCP over IPv4.
    fn read(frame: &[u8]) -> Option<Self> {
        let short = |bytes: &[u8], at: usize| {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        let long = |bytes: &[u8], at: usize| {
            Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let ip = frame.get(14..)?;
        let first = *ip.first()?;
        if short(frame, 12)? != 0x0800 || first >> 4 != 4 || *ip.get(9)? != 6 {
            return None;
        }
        let ip_header = usize::from(first & 15) * 4;
        let tcp = ip.get(ip_header..)?;
        let headers = ip_header + usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: (Ipv4Addr::from(long(ip, 12)?), short(tcp, 0)?),
            to: (Ipv4Addr::from(long(ip, 16)?), short(tcp, 2)?),
            sequence: long(tcp, 4)?,
            flags: *tcp.get(13)?,
            payload: u32::from(short(ip, 2)?).checked_sub(headers as u32)?,
        })
    }
}

/// A TCP flow as its receiver has it.
struct Flow {
    wanted: Wanted,
    /// Its sender's port, what is in order, and when it began.
    open: Option<(u16, InOrder, i64)>,
    /// The moments between which it is measured, and what was in order then.
    begin: (i64, u64),
    end: (i64, u64),
}

impl Flow {
    const fn new(wanted: Wanted) -> Self {
        Self { wanted, open: None, begin: (0, 0), end: (0, 0) }
    }

    /// Takes a frame of `length` bytes that begins with `bytes`; whether the flow ends with it.
    fn frame(&mut self, bytes: &[u8], length: usize, time: i64) -> bool {
        let Some(segment) = Segment::read(bytes) else { return false };
        let Wanted { from, port, longer, after_ns } = self.wanted;
        let comes = segment.from.0 == from && segment.to.1 == port;
        let Some((sender, in_order, began)) = &mut self.open else {
            if comes && length > longer {
                let next = segment.sequence.wrapping_add(segment.payload);
                self.open = Some((segment.from.1, InOrder::new(next), time));
                (self.begin, self.end) = ((time, 0), (time, 0));
            }
            return false;
        };
        let sender = (from, *sender);
        if comes && segment.from == sender && in_order.arrived(segment.sequence, segment.payload) {
            self.end = (time, in_order.bytes);
            if time - *began <= after_ns {
                self.begin = self.end;
            }
        }
        let goes = segment.to == sender && segment.from.1 == port;
        segment.flags & ENDS != 0 && (goes || comes && segment.from == sender)
    }

    const fn goodput(&self) -> Goodput {
        Goodput { bytes: self.end.1 - self.begin.1, ns: self.end.0 - self.begin.0 }
    }
}

/// What has arrived of a stream of bytes whose pieces may come twice and in any order.
struct InOrder {
    /// Bytes without a gap, from the beginning.
    bytes: u64,
    /// The sequence number of the next one.
    next: u32,
    /// Pieces behind a gap: first byte, and the one after the last.
    ahead: BTreeMap<u64, u64>,
}

impl InOrder {
    const fn new(next: u32) -> Self {
        Self { bytes: 0, next, ahead: BTreeMap::new() }
    }

    /// Takes a piece; whether more is in order now.
    fn arrived(&mut self, sequence: u32, length: u32) -> bool {
        // Less than 2 GiB before or behind the next byte, as TCP's window is.
        let distance = i64::from(sequence.wrapping_sub(self.next).cast_signed());
        let Some(end) = self.bytes.checked_add_signed(distance + i64::from(length)) else {
            return false;
        };
        let start = self.bytes.saturating_add_signed(distance);
        let before = self.bytes;
        if start > before {
            let known = self.ahead.entry(start).or_default();
            *known = end.max(*known);
            return false;
        }
        self.bytes = end.max(before);
        while let Some(piece) = self.ahead.first_entry().filter(|p| *p.key() <= self.bytes) {
            self.bytes = piece.remove().max(self.bytes);
        }
        self.next = self.next.wrapping_add((self.bytes - before) as u32);
        self.bytes > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const PORT: u16 = 5201;

    /// The headers of a frame, and its length.
    fn frame(back: bool, sender: u16, sequence: u32, payload: u16, flags: u8) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; 54];
        bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
        bytes[16..18].copy_from_slice(&(40 + payload).to_be_bytes());
        bytes[23] = 6;
        let mut ends = [(FROM, sender), (TO, PORT)];
        if back {
            ends.reverse();
        }
        for (end, (address, port)) in ends.into_iter().enumerate() {
            bytes[26 + 4 * end..][..4].copy_from_slice(&address.octets());
            bytes[34 + 2 * end..][..2].copy_from_slice(&port.to_be_bytes());
        }
        bytes[38..42].copy_from_slice(&sequence.to_be_bytes());
        bytes[46] = 5 << 4;
        bytes[47] = flags;
        (bytes, 54 + usize::from(payload))
    }

    fn flow(after_ns: i64) -> Flow {
        Flow::new(Wanted { from: FROM, port: PORT, longer: 700, after_ns })
    }

    #[test]
    fn a_flow_is_measured_from_its_first_segment_to_the_last_that_is_in_order() {
        let mut flow = flow(0);
        let mut take = |time, (bytes, length): (Vec<u8>, usize)| flow.frame(&bytes, length, time);
        // Of the control connection; and what goes back.
        assert!(!take(1, frame(false, 7, 50, 300, 0)));
        assert!(!take(2, frame(true, 8, 50, 1400, 0)));
        assert!(!take(10, frame(false, 8, u32::MAX - 999, 1000, 0)));
        assert!(!take(20, frame(false, 8, 0, 1000, 0)));
        // One is missing, and comes later; one comes twice.
        assert!(!take(30, frame(false, 8, 2000, 1000, 0)));
        assert!(!take(40, frame(false, 8, 0, 1000, 0)));
        assert!(!take(50, frame(false, 8, 1000, 1000, 0)));
        // Behind a gap for ever.
        assert!(!take(60, frame(false, 8, 5000, 1000, 0)));
        // The other connection ends, and then this one.
        assert!(!take(70, frame(false, 7, 350, 0, 1)));
        assert!(take(80, frame(true, 8, 51, 0, 4)));
        assert_eq!(flow.goodput(), Goodput { bytes: 3000, ns: 40 });
    }

    #[test]
    fn the_beginning_of_a_flow_may_not_count() {
        let mut flow = flow(25);
        for n in 0..10 {
            let (bytes, length) = frame(false, 8, n * 1000, 1000, u8::from(n == 9));
            assert_eq!(flow.frame(&bytes, length, i64::from(n) * 10), n == 9);
        }
        assert_eq!(flow.goodput(), Goodput { bytes: 7000, ns: 70 });
    }

    #[test]
    fn what_is_no_segment_is_passed_over() {
        let (bytes, _) = frame(false, 8, 0, 1000, 1);
        for length in 0..48 {
            assert!(Segment::read(&bytes[..length]).is_none());
        }
        for (at, value) in [(12, 0x86), (14, 0x65), (23, 17), (46, 0xf0)] {
            let mut other = bytes.clone();
            other[at] = value;
            let segment = Segment::read(&other);
            assert!(segment.is_none_or(|s| at == 46 && s.payload == 960), "{at}");
        }
    }

    proptest! {
        #[test]
        fn in_order_is_all_before_the_first_byte_that_is_missing(
            first: u32,
            pieces in prop::collection::vec((0usize..200, 0usize..40), 1..60),
        ) {
            let mut in_order = InOrder::new(first);
            let mut there = [false; 240];
            for (start, length) in pieces {
                let before = in_order.bytes;
                let more = in_order.arrived(first.wrapping_add(start as u32), length as u32);
                there[start..start + length].fill(true);
                let gapless = there.iter().take_while(|there| **there).count() as u64;
                prop_assert_eq!(in_order.bytes, gapless);
                prop_assert_eq!(more, gapless > before);
            }
        }
    }
}
