// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that a switch has seen, as a pcap file in its own time.
//!
//! The switch lends dom0 a byte ring and puts a record into it for each frame; what does not fit is
//! dropped and counted, so that a slow reader costs it nothing. Stamps are virtual, to the
//! nanosecond, as the domain's wall clock shows them; the real time of each frame goes into a file
//! beside it, by the relation that Xen keeps.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tdf_xen::ring::{Consumer, Ring};

use crate::dom0::{Dom0, printable};
use crate::gntdev::{Lent, PAGE};
use crate::port::{PortError, home};
use crate::xen::{Control, Dilation, DomId};

/// Pages of the ring that a switch is asked for.
const PAGES: u32 = 64;
/// How often the ring is emptied, real time.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes of a record before its frame.
const HEADER: usize = 24;
/// Longest piece of a frame that can be asked for.
pub const MOST_SNAPLEN: u16 = 9018;
/// Where the index page has what.
const PRODUCED: usize = 0;
const CONSUMED: usize = 64;
const DROPS: usize = 128;

/// What is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The port; `None`: all.
    pub port: Option<u32>,
    /// Bytes of each frame that are kept.
    pub snaplen: u16,
    /// For how long, ns of the switch's time; `None`: until somebody interrupts.
    pub span_ns: Option<i64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Frames in the file.
    pub frames: u64,
    /// Frames that the ring had no room for.
    pub dropped: u64,
}

/// The switch's answer: the references of the pages that it lends.
#[derive(Deserialize)]
struct Lease {
    index: u32,
    data: Vec<u32>,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record<'a> {
    virtual_ns: u64,
    length: u32,
    port: u8,
    outgoing: bool,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The first record in `bytes` and what follows it; `None` if it is not all there yet.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let number = |at: usize, size: usize| {
            let bytes = bytes.get(at..at + size)?;
            Some(bytes.iter().rev().fold(0u64, |sum, &byte| (sum << 8) | u64::from(byte)))
        };
        let captured = number(20, 2)? as usize;
        let record = Self {
            virtual_ns: number(0, 8)?,
            length: number(16, 4)? as u32,
            port: number(22, 1)? as u8,
            outgoing: number(23, 1)? != 0,
            bytes: bytes.get(HEADER..HEADER + captured)?,
        };
        Some((record, &bytes[HEADER + captured..]))
    }
}

/// Writes frames, and beside them their real time.
struct Files<'a> {
    pcap: &'a mut dyn Write,
    beside: &'a mut dyn Write,
    dilation: Dilation,
}

impl Files<'_> {
    fn begin(&mut self, snaplen: u16) -> io::Result<()> {
        // Nanoseconds, version 2.4, no zone, no accuracy, Ethernet.
        let words = [0xa1b2_3c4d_u32, 4 << 16 | 2, 0, 0, snaplen.into(), 1];
        for word in words {
            self.pcap.write_all(&word.to_le_bytes())?;
        }
        writeln!(self.beside, "# virtual_ns real_ns port direction bytes")
    }

    fn frame(&mut self, record: &Record<'_>) -> io::Result<()> {
        let d = &self.dilation;
        let since = i128::from(record.virtual_ns) - i128::from(d.virt0_ns);
        let real = if d.active {
            i128::from(d.real0_ns) + d.tdf.to_real(since)
        } else {
            i128::from(record.virtual_ns)
        };
        let wall = record.virtual_ns.wrapping_add_signed(d.wall_ns.wrapping_sub(d.virt_ns));
        let (seconds, ns) = (wall / 1_000_000_000, wall % 1_000_000_000);
        for word in [seconds as u32, ns as u32, record.bytes.len() as u32, record.length] {
            self.pcap.write_all(&word.to_le_bytes())?;
        }
        self.pcap.write_all(record.bytes)?;
        let direction = if record.outgoing { "out" } else { "in" };
        let Record { virtual_ns, port, length, .. } = record;
        writeln!(self.beside, "{virtual_ns} {real} {port} {direction} {length}")
    }
}

/// Writes all whole records in `bytes`; returns how many, and removes them.
fn drain(bytes: &mut Vec<u8>, files: &mut Files<'_>) -> io::Result<u64> {
    let (mut rest, mut frames) = (&bytes[..], 0);
    while let Some((record, after)) = Record::split(rest) {
        files.frame(&record)?;
        (rest, frames) = (after, frames + 1);
    }
    let used = bytes.len() - rest.len();
    bytes.drain(..used);
    Ok(frames)
}

impl<M: Dom0> Control<M> {
    /// Captures what `request` says into `pcap`, with the real times `beside` it.
    ///
    /// # Errors
    /// The switch refuses, lends no pages or misuses them; a file cannot be written.
    pub fn capture(
        &mut self,
        id: DomId,
        request: &Request,
        pcap: &mut dyn Write,
        beside: &mut dyn Write,
    ) -> Result<Captured, Box<dyn std::error::Error>> {
        let node = format!("{}/capture", home(id));
        let last = self.xenstore_read(&node)?.unwrap_or_default();
        let last: u32 = last.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        let version = last.wrapping_add(1).to_string();
        let port = request.port.map_or_else(|| json!("all"), |port| json!(port));
        let wanted = json!({ "port": port, "snaplen": request.snaplen, "pages": PAGES });
        self.tool("xenstore-write", &[&node, &format!("{version} {wanted}")])?;
        let result = self.drain_ring(id, &node, &version, request, pcap, beside);
        // Whatever happened, the switch is to take its pages back: nothing is mapped any more.
        let off = self.tool("xenstore-write", &[&node, &format!("{version} off")]);
        let captured = result?;
        off?;
        Ok(captured)
    }

    fn lease(&mut self, node: &str, version: &str) -> Result<Lease, PortError> {
        let ring = format!("{node}/ring");
        let mut lease = None;
        self.await_answer(|control| {
            let answer = control.xenstore_read(&ring)?.unwrap_or_default();
            if let Some((of, json)) = answer.split_once(' ')
                && of == version
            {
                let nonsense = || PortError::Nonsense(ring.clone(), printable(json));
                lease = Some(serde_json::from_str(json).map_err(|_| nonsense())?);
                return Ok(Some(()));
            }
            let error = control.xenstore_read(&format!("{node}/error"))?.unwrap_or_default();
            match error.split_once(' ') {
                Some((of, why)) if of == version => Err(PortError::Refused(printable(why))),
                _ => Ok(None),
            }
        })?;
        lease.ok_or(PortError::Silent)
    }

    fn drain_ring(
        &mut self,
        id: DomId,
        node: &str,
        version: &str,
        request: &Request,
        pcap: &mut dyn Write,
        beside: &mut dyn Write,
    ) -> Result<Captured, Box<dyn std::error::Error>> {
        let lease = self.lease(node, version)?;
        let map = |references: &[u32]| {
            Lent::map(id, references)
                .map_err(|e| format!("the switch's pages cannot be mapped: {e}"))
        };
        let (index, data) = (map(&[lease.index])?, map(&lease.data)?);
        // SAFETY: the offsets lie within the index page and are aligned; both mappings outlive the
        // ring, and the switch, as we, uses them atomically.
        let (ring, dropped) = unsafe {
            let at = |offset: usize| index.address().add(offset);
            let (produced, consumed) = (at(PRODUCED).cast(), at(CONSUMED).cast());
            let ring = Ring::new(data.address(), data.bytes() as u32, produced, consumed);
            (ring, AtomicU64::from_ptr(at(DROPS).cast()))
        };
        let ring = ring.ok_or_else(|| {
            format!("the switch lends {} pages, no power of two", data.bytes() / PAGE)
        })?;
        let mut consumer = Consumer::new(ring);
        let dilation = self.get_tdf(id)?;
        let end = request.span_ns.map(|span| dilation.virt_ns.saturating_add(span));
        let mut files = Files { pcap, beside, dilation };
        files.begin(request.snaplen)?;
        let (mut bytes, mut captured) = (Vec::new(), Captured::default());
        let mut buffer = vec![0; 1 << 16];
        loop {
            let over =
                self.machine.interrupted() || end.is_some_and(|end| files.dilation.virt_ns >= end);
            loop {
                let count = consumer.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                bytes.extend_from_slice(&buffer[..count]);
                captured.frames += drain(&mut bytes, &mut files)?;
            }
            if over {
                break;
            }
            self.machine.pause(LOOK);
            // The factor may change meanwhile.
            files.dilation = self.get_tdf(id)?;
        }
        captured.dropped = dropped.load(Ordering::Relaxed);
        Ok(captured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(virtual_ns: u64, frame: &[u8], out: u8) -> Vec<u8> {
        let mut bytes = virtual_ns.to_le_bytes().to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1514u32.to_le_bytes());
        bytes.extend((frame.len() as u16).to_le_bytes());
        bytes.extend([3, out]);
        bytes.extend(frame);
        bytes
    }

    #[test]
    fn records_become_frames_with_both_times_wherever_the_ring_cuts_them() {
        let whole = [record(1_500, b"abc", 0), record(2_500, b"", 1)].concat();
        let dilation = Dilation {
            tdf: "10".parse().unwrap(),
            active: true,
            reveal: false,
            real0_ns: 1_000,
            virt0_ns: 500,
            real_ns: 0,
            virt_ns: 2_000,
            wall_ns: 7_000_002_000,
        };
        let mut outputs = Vec::new();
        for cut in 0..=whole.len() {
            let (mut pcap, mut beside) = (Vec::new(), Vec::new());
            let mut files = Files { pcap: &mut pcap, beside: &mut beside, dilation };
            files.begin(256).unwrap();
            let mut bytes = whole[..cut].to_vec();
            let mut frames = drain(&mut bytes, &mut files).unwrap();
            bytes.extend(&whole[cut..]);
            frames += drain(&mut bytes, &mut files).unwrap();
            assert_eq!((frames, bytes.len()), (2, 0));
            outputs.push((pcap, beside));
        }
        assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
        let (pcap, beside) = &outputs[0];
        assert_eq!(pcap[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        let words: Vec<u32> = pcap[24..40]
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [7, 1_500, 3, 1514]);
        assert_eq!(&pcap[40..43], b"abc");
        let text = String::from_utf8(beside.clone()).unwrap();
        assert!(text.ends_with("1500 11000 3 in 1514\n2500 21000 3 out 1514\n"), "{text}");
    }
}
