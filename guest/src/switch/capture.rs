// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames for whoever looks on: records in a byte ring that another domain reads.
//!
//! A record is written whole or not at all, and what was not is counted: a reader that is too slow
//! costs records, never time.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tdf_xen::abi::{DomId, GrantRef, PAGE_SIZE};
use tdf_xen::grant::EndError;
use tdf_xen::ring::{Producer, Ring};

use super::exchange::Lending;
use super::fabric::Direction;
use super::pool::{FrameId, Pool};

/// Bytes of a record before those of the frame.
const HEADER: usize = 24;
/// Most pages of a ring.
const PAGES_MAX: usize = 256;
/// Where what is in the index page: bytes written, bytes read, and records that were left out.
const PRODUCED: usize = 0;
const CONSUMED: usize = 64;
const DROPS: usize = 128;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// A port's number, or `"all"`.
    port: serde_json::Value,
    /// Most bytes of a frame.
    snaplen: u16,
    /// Pages of the ring, a power of two.
    pages: usize,
}

/// What the reader is to map.
#[derive(Debug, Serialize)]
struct Lease {
    index: u32,
    data: Vec<u32>,
}

/// A capture that goes on, or whose reader has yet to let go of its pages.
#[derive(Debug)]
pub struct Capture {
    memory: *mut u8,
    layout: Layout,
    lent: Vec<GrantRef>,
    producer: Producer,
    /// Only this port's frames.
    port: Option<u8>,
    snaplen: u16,
    dropped: u64,
}

impl Capture {
    /// A ring that is lent to `reader`, and what to tell it.
    ///
    /// # Errors
    /// A sentence that says why that cannot be.
    pub fn new(
        request: &str,
        ports: usize,
        reader: DomId,
        lending: &mut Lending,
    ) -> Result<(Self, String), String> {
        let Request { port, snaplen, pages } =
            serde_json::from_str(request).map_err(|error| error.to_string())?;
        let port = match (port.as_str(), port.as_u64()) {
            (Some("all"), _) => None,
            (_, Some(port)) if port < ports as u64 => Some(port as u8),
            _ => return Err(format!("port: expected \"all\" or a number below {ports}")),
        };
        if !pages.is_power_of_two() || pages > PAGES_MAX {
            return Err(format!("pages: expected a power of two up to {PAGES_MAX}"));
        }
        let layout = Layout::from_size_align((pages + 1) * PAGE_SIZE, PAGE_SIZE)
            .map_err(|error| error.to_string())?;
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc::alloc::alloc_zeroed(layout) };
        if memory.is_null() {
            return Err("there is no memory for the ring".into());
        }
        let (data, index) = (memory, memory.wrapping_add(pages * PAGE_SIZE));
        let words = |at| index.wrapping_add(at).cast();
        // SAFETY: within the memory, which lives as long as the capture; accessed by atomic means.
        let ring = unsafe {
            Ring::new(data, (pages * PAGE_SIZE) as u32, words(PRODUCED), words(CONSUMED))
        };
        let lent = Vec::new();
        let mut capture = match ring.map(Producer::new) {
            Some(producer) => Self { memory, layout, lent, producer, port, snaplen, dropped: 0 },
            // It was found a power of two.
            None => return Err("the ring has no size".into()),
        };
        match capture.lend(pages, reader, lending) {
            Ok(lease) => Ok((capture, lease)),
            Err(why) => {
                // The reader has not heard of it.
                capture.end(lending);
                Err(why)
            }
        }
    }

    fn lend(
        &mut self,
        pages: usize,
        reader: DomId,
        lending: &mut Lending,
    ) -> Result<String, String> {
        for page in 0..=pages {
            let frame = (lending.frame)(self.memory.wrapping_add(page * PAGE_SIZE));
            let frame = frame.ok_or("the ring's memory cannot be lent")?;
            // SAFETY: the page was zeroed, and is accessed by atomic means.
            let lent = unsafe { lending.grants.grant_access(reader, frame, false) };
            self.lent.push(lent.map_err(|error| error.to_string())?);
        }
        let data = self.lent[..pages].iter().map(|lent| lent.0).collect();
        let lease = Lease { index: self.lent[pages].0, data };
        serde_json::to_string(&lease).map_err(|error| error.to_string())
    }

    /// Takes the pages back; whether the reader has let go of all of them. Only then may the capture be
    /// dropped.
    pub fn end(&mut self, lending: &mut Lending) -> bool {
        let grants = &mut lending.grants;
        self.lent.retain(|lent| grants.end_access(*lent) == Err(EndError::StillInUse));
        self.lent.is_empty()
    }

    /// Writes a record, if the frame is one that is wanted.
    pub fn record(
        &mut self,
        at: u64,
        port: usize,
        direction: Direction,
        pool: &Pool,
        frame: FrameId,
    ) {
        if self.port.is_some_and(|wanted| usize::from(wanted) != port) {
            return;
        }
        let length = pool.len(frame);
        let captured = length.min(self.snaplen.into());
        let room = self.producer.room().unwrap_or(0) as usize;
        if room < HEADER + captured as usize {
            self.dropped += 1;
            let index = self.memory.wrapping_add(self.layout.size() - PAGE_SIZE + DROPS);
            // SAFETY: in the index page, aligned, and accessed by atomic means.
            unsafe { AtomicU64::from_ptr(index.cast()) }.store(self.dropped, Ordering::Relaxed);
            return;
        }
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&at.to_le_bytes());
        // Real time is for the reader to tell, who knows the factor.
        header[16..20].copy_from_slice(&length.to_le_bytes());
        header[20..22].copy_from_slice(&(captured as u16).to_le_bytes());
        header[22] = port as u8;
        header[23] = u8::from(direction == Direction::Egress);
        // There is room for all of it.
        let _ = self.producer.write(&header);
        let mut left = captured as usize;
        for bytes in pool.chunks(frame) {
            let count = left.min(bytes.len());
            let _ = self.producer.write(&bytes[..count]);
            left -= count;
            if left == 0 {
                break;
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Memory that the reader still has is lost rather than used for something else.
        if self.lent.is_empty() {
            // SAFETY: allocated with this layout, and nobody has any of it.
            unsafe { alloc::alloc::dealloc(self.memory, self.layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::pool::FrameInfo;
    use crate::switch::pool::fake::Memory;
    use tdf_xen::abi::{GRANTS_PER_PAGE, GrantEntry, Mfn};
    use tdf_xen::grant::GrantTable;
    use tdf_xen::ring::Consumer;

    fn lending() -> Lending {
        let entries = vec![GrantEntry::default(); GRANTS_PER_PAGE as usize].leak();
        // SAFETY: kept for ever.
        let grants = unsafe { GrantTable::new(entries.as_mut_ptr().cast(), 1) };
        Lending { grants, frame: |at| Some(Mfn(at.addr() as u64 >> 12 & 0xffff_ffff)) }
    }

    #[test]
    fn records_are_whole_or_counted_and_the_pages_come_back() {
        let mut lending = lending();
        let request = r#"{"port": 3, "snaplen": 100, "pages": 1}"#;
        let (mut capture, lease) = Capture::new(request, 4, DomId(0), &mut lending).unwrap();
        assert_eq!(lease, r#"{"index":9,"data":[8]}"#);
        assert_eq!(lending.grants.in_use(), 2);
        let mut memory = Memory::new(2);
        let mut pool = memory.pool();
        let info = FrameInfo { refs: 1, ..FrameInfo::default() };
        let frame = pool.take(3000, info).unwrap();
        let mut n = 0u8;
        pool.for_each_chunk(frame, |bytes| {
            bytes.iter_mut().for_each(|byte| {
                n = n.wrapping_add(1);
                *byte = n;
            })
        });
        capture.record(1, 2, Direction::Ingress, &pool, frame);
        for at in 0..40 {
            let direction = if at % 2 == 0 { Direction::Ingress } else { Direction::Egress };
            capture.record(at, 3, direction, &pool, frame);
        }
        // SAFETY: the capture's own memory, on one thread.
        let (mut consumer, dropped) = unsafe {
            let index = capture.memory.add(PAGE_SIZE);
            let ring = Ring::new(
                capture.memory,
                PAGE_SIZE as u32,
                index.cast(),
                index.add(CONSUMED).cast(),
            );
            (Consumer::new(ring.unwrap()), index.add(DROPS).cast::<u64>().read())
        };
        let mut bytes = [0; PAGE_SIZE];
        let count = consumer.read(&mut bytes).unwrap();
        let whole = PAGE_SIZE / (HEADER + 100);
        assert_eq!((count, dropped), (whole * (HEADER + 100), 40 - whole as u64));
        for (at, record) in bytes[..count].chunks(HEADER + 100).enumerate() {
            assert_eq!(record[..8], (at as u64).to_le_bytes());
            assert_eq!(record[16..24], [0xb8, 0x0b, 0, 0, 100, 0, 3, (at % 2) as u8]);
            assert!(record[HEADER..].iter().zip(1..).all(|(byte, n)| *byte == n));
        }
        assert!(capture.end(&mut lending));
        assert_eq!(lending.grants.in_use(), 0);
    }

    #[test]
    fn a_request_that_cannot_be_is_a_sentence() {
        for (request, sentence) in [
            (
                r#"{"port": 4, "snaplen": 9, "pages": 4}"#,
                "port: expected \"all\" or a number below 4",
            ),
            (
                r#"{"port": "all", "snaplen": 9, "pages": 3}"#,
                "pages: expected a power of two up to 256",
            ),
            (
                r#"{"port": "all", "snaplen": 9, "pages": 0}"#,
                "pages: expected a power of two up to 256",
            ),
        ] {
            let mut lending = lending();
            let refused = Capture::new(request, 4, DomId(0), &mut lending);
            assert_eq!(refused.map(drop), Err(sentence.to_string()));
            assert_eq!(lending.grants.in_use(), 0);
        }
        // More pages than can be lent.
        let mut lending = lending();
        lending.grants = unsafe_small();
        let refused =
            Capture::new(r#"{"port": "all", "snaplen": 9, "pages": 4}"#, 4, DomId(0), &mut lending);
        assert_eq!(refused.map(drop), Err("every entry of the grant table is taken".to_string()));
    }

    /// A table without any entry.
    fn unsafe_small() -> GrantTable {
        // SAFETY: it is never accessed.
        unsafe { GrantTable::new(std::ptr::null_mut(), 0) }
    }
}
