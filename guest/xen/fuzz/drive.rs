// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns bytes into a hostile peer, of a backend or of a frontend, and checks what must always hold.
//!
//! The peer writes whatever it likes into the rings, and not only between calls: the pages are haunted,
//! and change under the engine's hands before any of its reads. What the engine really read, and wrote,
//! is recorded, so that every request can be seen to be answered once. The fuzz target and the
//! program that runs for a number of steps share this.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::AddAssign;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use tdf_xen::abi::{DomId, GRANTS_PER_PAGE, GTF_READING, GrantEntry, Mfn, PAGE_SIZE};
use tdf_xen::grant::GrantTable;
use tdf_xen::netback::{Netback, Notify, Owed, OwedPage, RxFrame, RxSlot, TakenTx};
use tdf_xen::netfront::{Netfront, OwnPage, Received};
use tdf_xen::netif::{Fault, Refusal, RxResponse, Status, Sums, TxFrame, TxRequest, TxResponse};
use tdf_xen::shared_ring::{Memory, SharedPage, Slot};

/// Words of a page, and those of a ring's header.
const WORDS: usize = PAGE_SIZE / 4;
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 2;
const SLOTS: usize = 16;
/// Slots of either ring of an interface, and words of a slot.
const RING: u32 = 256;
const TX: usize = 3;
const RX: usize = 2;
/// The longest frame of the interfaces.
const LONGEST: u16 = 9018;

/// What happened, by name, so that a run can show that it met everything.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls of the engines, and acts of their peers.
    pub steps: u64,
    /// Words that a peer has written against the rules.
    pub mutations: u64,
    /// Everything else.
    pub seen: BTreeMap<&'static str, u64>,
}

impl Report {
    fn count(&mut self, what: &'static str) {
        self.seen.entry(what).or_default().add_assign(1);
    }

    fn fault(&mut self, fault: Fault) {
        self.count(match fault {
            Fault::Ring(_) => "fault: index",
            Fault::Cut => "fault: cut",
            Fault::ExtraKind(_) => "fault: extra kind",
            Fault::CrossesPage { .. } => "fault: crosses page",
            Fault::Empty => "fault: empty",
            Fault::TooMuch => "fault: too much",
            Fault::NotAsked(_) => "fault: not asked",
            Fault::Closed => "closed",
        });
    }
}

/// Everything that a run with enough steps must have met.
pub const EXPECTED: &[&str] = &[
    "back: frame taken",
    "back: single taken",
    "back: frame answered",
    "back: pages taken",
    "back: pages answered",
    "back: refused slots",
    "back: refused short",
    "back: refused long",
    "back: refused segments",
    "back: refused extra",
    "back: connected anew",
    "front: frame sent",
    "front: frame received",
    "front: frame recycled",
    "front: refused slots",
    "front: refused short",
    "front: refused long",
    "front: refused segments",
    "front: refused extra",
    "front: refused failed",
    "front: page still mapped",
    "front: connected anew",
    "fault: index",
    "fault: cut",
    "fault: extra kind",
    "fault: crosses page",
    "fault: empty",
    "fault: too much",
    "fault: not asked",
    "neighbour: frame",
];

/// Bytes, and zeroes behind them.
struct Bytes<'a> {
    data: &'a [u8],
    /// How often the pages change by themselves, of 256 reads.
    haunt: u8,
    /// The peer breaks the rules one time in so many: whoever always does gets nowhere.
    temper: u8,
    mutations: u64,
}

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.data.split_first().unwrap_or((&0, &[]));
        self.data = rest;
        *first
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn yes(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn one_in(&mut self, count: u8) -> bool {
        self.byte().is_multiple_of(count)
    }

    fn loses_temper(&mut self) -> bool {
        let temper = self.temper;
        self.one_in(temper)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.half()) % limit.max(1)
    }

    /// A size or an offset, often one near a limit.
    fn size(&mut self) -> u16 {
        match self.byte() % 8 {
            0 => 0,
            1 => 13 + u16::from(self.byte() % 3),
            2 => 4094 + u16::from(self.byte() % 4),
            3 => self.half(),
            4 => LONGEST - 1 + u16::from(self.byte() % 3),
            _ => u16::from(self.byte()) * 6,
        }
    }

    /// A word that somebody may wish were another, instead of `old`.
    fn word(&mut self, old: u32) -> u32 {
        let byte = u32::from(self.byte());
        match byte % 8 {
            0 => old.wrapping_add(byte >> 3),
            1 => old.wrapping_sub(byte >> 3),
            2 => old ^ 1 << (byte >> 3),
            3 => old.wrapping_add(RING + (byte >> 3) - 16),
            4 => u32::MAX - (byte >> 3),
            5 => u32::from(self.half()) << ((byte >> 3) % 17),
            6 => byte >> 3,
            _ => u32::from(self.half()) | u32::from(self.half()) << 16,
        }
    }
}

type Source<'a> = Rc<RefCell<Bytes<'a>>>;

/// Pages of their own, so that a tool that guards memory sees whoever leaves one.
struct Pages(Vec<*mut u8>);

const PAGE: Layout = match Layout::from_size_align(PAGE_SIZE, PAGE_SIZE) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a layout"),
};

impl Pages {
    fn new(count: usize) -> Self {
        // SAFETY: a page has a size.
        let page = |_| unsafe { alloc_zeroed(PAGE) };
        let pages: Vec<_> = (0..count).map(page).collect();
        if pages.iter().any(|page| page.is_null()) {
            handle_alloc_error(PAGE);
        }
        Self(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for page in &self.0 {
            // SAFETY: allocated so, and no engine is left.
            unsafe { dealloc(*page, PAGE) };
        }
    }
}

/// What an engine did to a page.
struct Record {
    /// Words of slots that it read, as it saw them.
    read: Vec<u32>,
    /// Words of slots that it wrote.
    written: VecDeque<u32>,
    /// The last that it wrote to each word.
    shadow: [u32; WORDS],
    stores: u64,
}

/// A page that its peer changes whenever it likes.
struct Haunted<'a> {
    page: *mut u32,
    bytes: Source<'a>,
    record: Rc<RefCell<Record>>,
}

/// The peer's hand on a page.
struct Hand<'a> {
    page: *mut u32,
    bytes: Source<'a>,
    record: Rc<RefCell<Record>>,
    /// How far it has written, if it is honest.
    prod: u32,
}

fn word(page: *mut u32, word: usize) -> &'static AtomicU32 {
    assert!(word < WORDS, "word {word} is not in a page");
    // SAFETY: in the page, which outlives engine and peer.
    unsafe { AtomicU32::from_ptr(page.add(word)) }
}

/// The page at `at`, whose indices stand at `index`, as the engine and as its peer have it.
fn haunted<'a>(at: *mut u8, bytes: &Source<'a>, index: u32) -> (Haunted<'a>, Hand<'a>) {
    let page: *mut u32 = at.cast();
    for n in 0..WORDS {
        let value = match n {
            0 | 2 => index,
            1 | 3 => index.wrapping_add(1),
            _ => 0,
        };
        word(page, n).store(value, Ordering::Relaxed);
    }
    let mut shadow = [0; WORDS];
    shadow[RSP_PROD] = index;
    let record = Record { read: Vec::new(), written: VecDeque::new(), shadow, stores: 0 };
    let record = Rc::new(RefCell::new(record));
    let hand = Hand { page, bytes: Rc::clone(bytes), record: Rc::clone(&record), prod: index };
    (Haunted { page, bytes: Rc::clone(bytes), record }, hand)
}

fn disturb(page: *mut u32, bytes: &Source) {
    let mut bytes = bytes.borrow_mut();
    let at = match bytes.byte() % 4 {
        0 => bytes.below(4),
        1 => SLOTS + bytes.below(12),
        _ => bytes.below(WORDS),
    };
    let at = word(page, at);
    at.store(bytes.word(at.load(Ordering::Relaxed)), Ordering::Relaxed);
    bytes.mutations += 1;
}

impl Memory for Haunted<'_> {
    fn load(&self, at: usize, order: Ordering) -> u32 {
        let haunt = self.bytes.borrow().haunt;
        if haunt != 0 && self.bytes.borrow_mut().byte() < haunt {
            disturb(self.page, &self.bytes);
        }
        let value = word(self.page, at).load(order);
        if at >= SLOTS {
            self.record.borrow_mut().read.push(value);
        }
        value
    }

    fn store(&self, at: usize, value: u32, order: Ordering) {
        word(self.page, at).store(value, order);
        let mut record = self.record.borrow_mut();
        record.shadow[at] = value;
        record.stores += 1;
        if at >= SLOTS {
            record.written.push_back(value);
        }
    }

    fn full_fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl Hand<'_> {
    /// Writes a slot as an honest peer would, not caring whether there is room.
    fn push<const N: usize>(&mut self, stride: usize, words: [u32; N]) {
        let at = SLOTS + (self.prod % RING) as usize * stride;
        for (n, value) in words.into_iter().enumerate() {
            word(self.page, at + n).store(value, Ordering::Relaxed);
        }
        self.prod = self.prod.wrapping_add(1);
    }

    fn show(&self, at: usize) {
        word(self.page, at).store(self.prod, Ordering::Release);
    }

    /// How far the peer is behind what the engine has shown in word `at`: a backend may answer so many
    /// requests, a frontend may ask that many, and a ring, more.
    fn room(&self, at: usize) -> u32 {
        self.shadow(at).wrapping_sub(self.prod)
    }

    /// Writes somewhere, if it feels like it.
    fn vent(&self) {
        if self.bytes.borrow_mut().loses_temper() {
            disturb(self.page, &self.bytes);
        }
    }

    /// What the engine has read of slots since the last time.
    fn read(&self) -> Vec<u32> {
        std::mem::take(&mut self.record.borrow_mut().read)
    }

    /// The next slot that the engine has written, if it has.
    fn written<const N: usize>(&self) -> Option<[u32; N]> {
        let written = &mut self.record.borrow_mut().written;
        (written.len() >= N).then(|| std::array::from_fn(|_| written.pop_front().unwrap_or(0)))
    }

    /// How many words of slots the engine has written since the last time.
    fn wrote(&self) -> usize {
        std::mem::take(&mut self.record.borrow_mut().written).len()
    }

    /// What the engine has last written to the slot that `index` stands for.
    fn answer<const N: usize>(&self, index: u32) -> [u32; N] {
        std::array::from_fn(|n| self.shadow(SLOTS + (index % RING) as usize * N + n))
    }

    fn shadow(&self, at: usize) -> u32 {
        self.record.borrow().shadow[at]
    }

    fn stores(&self) -> u64 {
        self.record.borrow().stores
    }
}

fn slot<T: Slot>(words: &[u32]) -> T {
    T::read(|n| words[n])
}

/// A chain of slots as it was read: the requests' or responses' numbers within the chain, and how many
/// slots were extra.
struct Chain {
    data: Vec<usize>,
    extras: usize,
}

/// Walks over the slots that an engine has read to the ends of their chains.
fn chains<const N: usize>(slots: &[[u32; N]], flags: impl Fn(&[u32; N]) -> u16) -> Vec<Chain> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < slots.len() {
        let first = flags(&slots[at]);
        let mut chain = Chain { data: vec![at], extras: 0 };
        at += 1;
        let mut more = first & 8 != 0;
        while more {
            more = slots[at][0] >> 8 & 1 != 0;
            chain.extras += 1;
            at += 1;
        }
        more = first & 4 != 0;
        while more {
            more = flags(&slots[at]) & 4 != 0;
            chain.data.push(at);
            at += 1;
        }
        all.push(chain);
    }
    assert_eq!(at, slots.len(), "an engine stops at the end of a frame");
    all
}

/// A frame that was taken, whole or as the only slot that it is.
enum Held {
    Chain(Box<TxFrame>),
    Single(u16),
}

/// What is owed for the pages of a frame, or for a single one.
enum Lent {
    Many(Owed),
    One(OwedPage),
}

/// Pages that were taken for a frame: their sizes, and what was said of its sums.
struct Given {
    lent: Lent,
    sizes: Vec<u16>,
    blank: bool,
    validated: bool,
}

/// A backend, and what it owes.
struct Backend<'a> {
    engine: Netback<Haunted<'a>>,
    tx: Hand<'a>,
    rx: Hand<'a>,
    held: Vec<Held>,
    given: VecDeque<Given>,
    /// Answers that the peer is to see, and how far it has.
    tx_due: BTreeMap<(u16, i16), i64>,
    rx_due: VecDeque<(u16, i16, u16)>,
    tx_shown: u32,
    rx_shown: u32,
    /// Ids of pages that were taken, in order.
    rx_taken: VecDeque<u16>,
    refused: [u64; Refusal::COUNT],
}

impl<'a> Backend<'a> {
    fn new(pages: &Pages, bytes: &Source<'a>) -> Self {
        let index = {
            let mut bytes = bytes.borrow_mut();
            if bytes.yes() { u32::MAX - u32::from(bytes.byte()) } else { bytes.half().into() }
        };
        let (tx_page, tx) = haunted(pages.0[0], bytes, index);
        let (rx_page, rx) = haunted(pages.0[1], bytes, index);
        // Wherever the engine begins is right, but it must be known.
        let haunt = std::mem::take(&mut bytes.borrow_mut().haunt);
        let engine = Netback::new(tx_page, rx_page, LONGEST, LONGEST);
        bytes.borrow_mut().haunt = haunt;
        Self {
            engine,
            tx_shown: tx.prod,
            rx_shown: rx.prod,
            tx,
            rx,
            held: Vec::new(),
            given: VecDeque::new(),
            tx_due: BTreeMap::new(),
            rx_due: VecDeque::new(),
            rx_taken: VecDeque::new(),
            refused: [0; Refusal::COUNT],
        }
    }

    fn due(&mut self, id: u16, status: Status) {
        self.tx_due.entry((id, status.0)).or_default().add_assign(1);
    }

    /// Slots of a frame, or of something like one.
    fn peer_sends(&mut self) {
        let bytes = Rc::clone(&self.tx.bytes);
        let mut bytes = bytes.borrow_mut();
        let honest = !bytes.loses_temper();
        let count = match bytes.byte() % 8 {
            0 => 1 + bytes.below(24),
            1 | 2 => 1 + bytes.below(4),
            _ => 1,
        };
        // So much that its sum does not fit into 16 bits.
        let wraps = !honest && bytes.one_in(4);
        let count = if wraps { 17 + count % 2 } else { count };
        let sizes: Vec<u16> = (0..count)
            .map(|_| match (honest, wraps) {
                (true, _) => 14 + bytes.size() % 2000,
                (_, true) => 4095 + u16::from(bytes.byte() % 2),
                _ => bytes.size(),
            })
            .collect();
        let extras = if bytes.one_in(16) { 1 + bytes.below(3) } else { 0 };
        if honest && self.tx.room(RSP_PROD).wrapping_add(RING) < (count + extras) as u32 {
            return;
        }
        for (n, size) in sizes.iter().enumerate() {
            let mut flags = if n + 1 < count { 4 } else { 0 };
            flags |= if n == 0 && extras > 0 { 8 } else { 0 };
            flags |= u16::from(bytes.byte() % 4);
            let total = sizes.iter().fold(0u16, |sum, size| sum.wrapping_add(*size));
            let size = if n == 0 { total } else { *size };
            let offset = if honest || wraps { 0 } else { bytes.size() };
            let id = u16::from(bytes.byte());
            let request = TxRequest { gref: bytes.half().into(), offset, flags, id, size };
            self.tx.push(TX, <[u32; TX]>::from(request));
            for extra in 0..if n == 0 { extras } else { 0 } {
                let kind = u32::from(bytes.byte() % 7);
                let more = u32::from(extra + 1 < extras);
                self.tx.push(TX, [kind | more << 8, 0, 0]);
            }
        }
        drop(bytes);
        self.tx.show(REQ_PROD);
    }

    fn peer_posts(&mut self) {
        let mut count = self.rx.bytes.borrow_mut().below(40) as u32;
        if !self.rx.bytes.borrow_mut().loses_temper() {
            count = count.min(self.rx.room(RSP_PROD).wrapping_add(RING));
        }
        for _ in 0..count {
            let id = self.rx.bytes.borrow_mut().half();
            self.rx.push(RX, [id.into(), u32::from(id) + 8]);
        }
        self.rx.show(REQ_PROD);
    }

    fn take_tx(&mut self, report: &mut Report) -> Result<(), Fault> {
        let longest = match self.tx.bytes.borrow_mut().byte() {
            byte @ 128.. => u16::from(byte) * 16,
            _ => 0,
        };
        let mut place = TxFrame::EMPTY;
        let taken = self.engine.take_tx_any(longest, || &mut place);
        let read = self.tx.read();
        let (slots, rest) = read.as_chunks::<TX>();
        assert!(rest.is_empty(), "each slot is read once, whole");
        let frame = match taken? {
            TakenTx::Nothing => None,
            TakenTx::Single(single) => Some(Err(single)),
            TakenTx::Chain => Some(Ok(place)),
        };
        let chains = chains(slots, |slot| TxRequest::from(*slot).flags);
        let refused = chains.len() - usize::from(frame.is_some());
        for chain in &chains[..refused] {
            for at in &chain.data {
                self.due(TxRequest::from(slots[*at]).id, Status::ERROR);
            }
            for _ in 0..chain.extras {
                self.due(0, Status::NULL);
            }
        }
        let mut total = 0;
        for why in 0..Refusal::COUNT {
            let [slots, short, long, segments, extra, failed] = [
                Refusal::Slots,
                Refusal::Short,
                Refusal::Long,
                Refusal::Segments,
                Refusal::Extra,
                Refusal::Failed,
            ];
            let (reason, name) = [
                (slots, "back: refused slots"),
                (short, "back: refused short"),
                (long, "back: refused long"),
                (segments, "back: refused segments"),
                (extra, "back: refused extra"),
                (failed, "back: refused failed"),
            ][why];
            let count = self.engine.refused(reason);
            if count > self.refused[why] {
                report.count(name);
            }
            total += count - self.refused[why];
            self.refused[why] = count;
        }
        assert_eq!(total, refused as u64, "each refused frame is counted once");
        if let Some(Err(single)) = &frame {
            let chain = &chains[refused];
            assert_eq!((chain.data.len(), chain.extras), (1, 0));
            let (fragment, request) = (single.fragment(), TxRequest::from(slots[chain.data[0]]));
            assert_eq!((fragment.id, fragment.gref.0), (request.id, request.gref));
            assert_eq!((fragment.offset, fragment.size), (request.offset, request.size));
            assert!((14..=LONGEST.min(longest)).contains(&fragment.size));
            assert!(fragment.offset + fragment.size <= 4096);
            assert_eq!(single.sums().blank(), request.flags & 1 != 0);
            assert_eq!(single.sums().validated(), request.flags & 2 != 0);
            self.held.push(Held::Single(fragment.id));
            report.count("back: single taken");
        }
        if let Some(Ok(frame)) = frame {
            let chain = &chains[refused];
            assert_eq!((frame.fragments().len(), 0), (chain.data.len(), chain.extras));
            let mut sum = 0;
            for (fragment, at) in frame.fragments().iter().zip(&chain.data) {
                let request = TxRequest::from(slots[*at]);
                assert_eq!((fragment.id, fragment.gref.0), (request.id, request.gref));
                assert!(fragment.size > 0 && fragment.offset + fragment.size <= 4096);
                sum += u32::from(fragment.size);
            }
            assert_eq!(sum, u32::from(frame.total()));
            assert!(frame.total() <= LONGEST && frame.fragments()[0].size >= 14);
            self.held.push(Held::Chain(Box::new(frame)));
            report.count("back: frame taken");
        }
        Ok(())
    }

    fn answer_tx(&mut self, report: &mut Report) {
        if self.held.is_empty() {
            return;
        }
        let which = self.tx.bytes.borrow_mut().below(self.held.len());
        let frame = self.held.swap_remove(which);
        let status = [Status::OKAY, Status::ERROR, Status::DROPPED][which % 3];
        let ids: Vec<_> = match frame {
            Held::Chain(frame) => {
                let ids = frame.fragments().iter().map(|fragment| fragment.id).collect();
                self.engine.answer_tx(*frame, status).expect("it was taken here");
                ids
            }
            Held::Single(id) => {
                self.engine.settle_single(id, status).expect("it was taken here");
                vec![id]
            }
        };
        for id in ids {
            self.due(id, status);
        }
        report.count("back: frame answered");
    }

    fn take_rx(&mut self, report: &mut Report) -> Result<(), Fault> {
        let (len, way, sums) = {
            let mut bytes = self.rx.bytes.borrow_mut();
            (bytes.size(), bytes.byte() % 3, bytes.byte())
        };
        let (blank, validated) = (sums & 1 != 0, sums & 2 != 0);
        let sums = Sums::new(blank, validated);
        let like = self.held.iter().find_map(|held| match held {
            Held::Chain(frame) if way == 2 && Netback::<Haunted<'_>>::is_dense(frame) => {
                Some(frame)
            }
            _ => None,
        });
        let len = like.map_or(len, |frame| frame.total());
        let (blank, validated) =
            like.map_or((blank, validated), |f| (f.sums().blank(), f.sums().validated()));
        // What goes into each page.
        let mut pages = Vec::new();
        let mut note = |slots: &[RxSlot]| pages.extend(slots.iter().map(|s| (s.size, s.gref)));
        let mut many = |frame: RxFrame| {
            note(frame.slots());
            Lent::Many(frame.owed)
        };
        let taken = match (way, like) {
            (1, _) => self.engine.take_rx_page(len, sums).map(|taken| {
                taken.map(|(page, owed)| {
                    pages.push((len, page));
                    Lent::One(owed)
                })
            }),
            (_, None) => self.engine.take_rx(len, sums).map(|taken| taken.map(many)),
            (_, Some(frame)) => {
                let mut pages = RxFrame::NONE;
                let taken = self.engine.take_rx_like(frame, &mut pages);
                taken.map(|taken| taken.then(|| many(pages)))
            }
        };
        let read = self.rx.read();
        let (slots, rest) = read.as_chunks::<RX>();
        assert!(rest.is_empty(), "each slot is read once, whole");
        assert_eq!(
            self.rx.wrote(),
            read.len(),
            "what is taken is answered ahead, and nothing else"
        );
        self.rx_taken.extend(slots.iter().map(|[id, _]| *id as u16));
        let Some(lent) = taken? else {
            assert!(slots.is_empty(), "pages are taken whole or not at all");
            return Ok(());
        };
        assert!(len <= LONGEST);
        let (sizes, grefs): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
        assert_eq!(sizes.iter().sum::<u16>(), len);
        assert_eq!(sizes.len(), usize::from(len.div_ceil(4096).max(1)));
        assert!(grefs.iter().map(|gref| gref.0).eq(slots.iter().map(|[_, gref]| *gref)));
        self.given.push_back(Given { lent, sizes, blank, validated });
        report.count("back: pages taken");
        Ok(())
    }

    fn answer_rx(&mut self, report: &mut Report) {
        let Some(Given { lent, sizes, blank, validated }) = self.given.pop_front() else { return };
        let failed = self.rx.bytes.borrow_mut().byte() & 3 == 3;
        for (n, size) in sizes.iter().enumerate() {
            let id = self.rx_taken.pop_front().expect("a page that was taken");
            let more = if n + 1 < sizes.len() { 4 } else { 0 };
            let sums = u16::from(blank) * 2 + u16::from(blank || validated);
            let flags = more | if n == 0 { sums } else { 0 };
            self.rx_due.push_back(if failed {
                (id, -1, 0)
            } else {
                (id, size.cast_signed(), flags)
            });
        }
        let answered = match lent {
            Lent::Many(owed) => self.engine.answer_rx(owed, !failed),
            Lent::One(owed) => self.engine.answer_rx_page(owed, !failed),
        };
        answered.expect("it is its turn");
        let anew = if failed { sizes.len() * RX } else { 0 };
        assert_eq!(self.rx.wrote(), anew, "only what failed is written anew");
        report.count("back: pages answered");
    }

    /// The peer sees each answer once.
    fn publish(&mut self) {
        let _ = self.engine.publish();
        let (tx, rx) = (self.tx.shadow(RSP_PROD), self.rx.shadow(RSP_PROD));
        while self.tx_shown != tx {
            let words = self.tx.written::<1>().expect("an answer that was shown was written");
            let TxResponse { id, status } = slot(&words);
            let due = self.tx_due.get_mut(&(id, status.0)).expect("an answer that is due");
            *due -= 1;
            assert!(*due >= 0, "{id} is answered too often");
            self.tx_shown = self.tx_shown.wrapping_add(1);
        }
        while self.rx_shown != rx {
            let RxResponse { id, offset, flags, status } =
                self.rx.answer::<RX>(self.rx_shown).into();
            assert_eq!(offset, 0);
            assert_eq!(Some((id, status, flags)), self.rx_due.pop_front());
            self.rx_shown = self.rx_shown.wrapping_add(1);
        }
        let left: Vec<_> = self.tx_due.iter().filter(|(_, due)| **due != 0).collect();
        assert!(
            left.is_empty() && self.rx_due.is_empty(),
            "answers are missing: {left:?} {:?}",
            self.rx_due
        );
    }

    /// After a fault nothing is taken, given or shown.
    fn is_dead(&mut self, fault: Fault) {
        assert_eq!(self.engine.fault(), Some(fault));
        let before = (self.tx.stores(), self.rx.stores());
        assert_eq!(self.engine.take_tx(), Err(fault));
        assert_eq!(self.engine.take_rx(60, Sums::default()), Err(fault));
        assert_eq!(self.engine.arm(Some(60)), Err(fault));
        assert_eq!(self.engine.publish(), Notify::default());
        assert_eq!((self.tx.stores(), self.rx.stores()), before);
    }

    fn step(&mut self, op: u8, report: &mut Report) -> Result<(), Fault> {
        match op {
            0..=3 => self.peer_sends(),
            4 => self.peer_posts(),
            5 => self.tx.vent(),
            6 => self.rx.vent(),
            7..=9 => return self.take_tx(report),
            10 | 11 => self.answer_tx(report),
            12 => return self.take_rx(report),
            13 => self.answer_rx(report),
            14 => self.publish(),
            _ => {
                let len = self.tx.bytes.borrow_mut().size();
                self.engine.arm((len > 0).then_some(len))?;
            }
        }
        Ok(())
    }
}

/// A backend's life with a hostile frontend.
fn attack_back(bytes: &Source, report: &mut Report, neighbour: &mut Neighbour) {
    let pages = Pages::new(2);
    let mut back = Backend::new(&pages, bytes);
    while !bytes.borrow().data.is_empty() {
        let op = bytes.borrow_mut().byte() % 16;
        report.steps += 1;
        let stepped = back.step(op, report);
        assert!(back.engine.owed_tx() <= RING && back.engine.owed_rx() <= RING);
        if let Err(fault) = stepped {
            report.fault(fault);
            back.is_dead(fault);
            neighbour.lives(report);
            back = Backend::new(&pages, bytes);
            report.count("back: connected anew");
        }
    }
    // Nothing is owed in the end.
    bytes.borrow_mut().haunt = 0;
    while !back.held.is_empty() {
        back.answer_tx(report);
    }
    while !back.given.is_empty() {
        back.answer_rx(report);
    }
    back.publish();
    assert_eq!((back.engine.owed_tx(), back.engine.owed_rx()), (0, 0));
}

/// Pages of a frontend for each direction: enough for a frame of too many slots.
const N: usize = 24;

/// A frontend, and where its pages are.
struct Frontend<'a> {
    engine: Netfront<N, Haunted<'a>>,
    tx: Hand<'a>,
    rx: Hand<'a>,
    /// Numbers of what the backend was asked to send, and has not answered.
    asked: [bool; N],
    /// Numbers of the pages in the receive ring, in order.
    posted: VecDeque<u16>,
    held: Vec<(Received, Vec<u16>)>,
    refused: [u64; Refusal::COUNT],
}

impl<'a> Frontend<'a> {
    fn new(pages: &Pages, bytes: &Source<'a>, grants: &mut GrantTable) -> Self {
        // SAFETY: the pages outlive the engine, and nobody else has them.
        let own = |(n, page): (usize, &*mut u8)| unsafe { OwnPage::new(*page, Mfn(n as u64)) };
        let mut hands = Vec::new();
        let mut next = pages.0.iter();
        let rings = |_: SharedPage| {
            let page = *next.next().expect("the first two pages are the rings'");
            let (page, hand) = haunted(page, bytes, 0);
            hands.push(hand);
            page
        };
        let own = pages.0.iter().enumerate().map(own);
        let engine = Netfront::with_rings(own, rings, grants, DomId(0), LONGEST, LONGEST);
        let engine = engine.expect("there are pages and grants enough");
        let rx = hands.pop().expect("two rings");
        let tx = hands.pop().expect("two rings");
        // What clearing the rings wrote.
        for (hand, keep) in [(&tx, 0), (&rx, N * RX)] {
            let written = &mut hand.record.borrow_mut().written;
            written.drain(..written.len() - keep);
        }
        let mut front = Self {
            engine,
            tx,
            rx,
            asked: [false; N],
            posted: VecDeque::new(),
            held: Vec::new(),
            refused: [0; Refusal::COUNT],
        };
        front.note_requests();
        let _ = front.engine.publish();
        front
    }

    /// Each page is in one place.
    fn note_requests(&mut self) {
        while let Some(words) = self.tx.written::<TX>() {
            let id = usize::from(TxRequest::from(words).id);
            assert!(!self.asked[id], "{id} is sent twice");
            self.asked[id] = true;
        }
        while let Some([id, _]) = self.rx.written::<RX>() {
            let id = id as u16;
            assert!(usize::from(id) < N);
            assert!(!self.posted.contains(&id), "{id} is offered twice");
            assert!(!self.held.iter().any(|(_, ids)| ids.contains(&id)), "{id} is still held");
            self.posted.push_back(id);
        }
    }

    fn peer_answers(&mut self) {
        let bytes = Rc::clone(&self.tx.bytes);
        let mut bytes = bytes.borrow_mut();
        for _ in 0..=bytes.below(4) {
            let honest = !bytes.loses_temper();
            if honest && self.tx.room(REQ_PROD) == 0 {
                break;
            }
            let at = SLOTS + (self.tx.prod % RING) as usize * TX;
            let id = if honest { self.tx.shadow(at + 2) & 0xffff } else { bytes.half().into() };
            let status = [0, 0, 0xffff, 0xfffe][usize::from(bytes.byte() % 4)];
            self.tx.push(TX, [id | status << 16]);
        }
        drop(bytes);
        self.tx.show(RSP_PROD);
    }

    fn peer_gives(&mut self) {
        let bytes = Rc::clone(&self.rx.bytes);
        let mut bytes = bytes.borrow_mut();
        let honest = !bytes.loses_temper();
        let count = match bytes.byte() % 8 {
            0 => 1 + bytes.below(N),
            1 | 2 => 1 + bytes.below(4),
            _ => 1,
        };
        let extras = if bytes.one_in(16) { 1 + bytes.below(2) } else { 0 };
        if honest && (self.rx.room(REQ_PROD) as usize) < count + extras {
            return;
        }
        for n in 0..count {
            let mut flags = if n + 1 < count { 4 } else { 0 };
            flags |= if n == 0 && extras > 0 { 8 } else { 0 };
            flags |= u16::from(bytes.byte() % 4);
            let status = match bytes.byte() % 16 {
                0 => -1,
                1 => 4096,
                _ => (bytes.size() % 4097) as i16,
            };
            let offset = if honest { 0 } else { bytes.size() };
            let id = bytes.half();
            let response = RxResponse { id, offset, flags, status };
            self.rx.push(RX, <[u32; RX]>::from(response));
            for extra in 0..if n == 0 { extras } else { 0 } {
                let kind = u32::from(bytes.byte() % 7);
                let more = u32::from(extra + 1 < extras);
                self.rx.push(RX, [kind | more << 8, 0]);
            }
        }
        drop(bytes);
        self.rx.show(RSP_PROD);
    }

    /// An answer to what was not asked is a fault, and nothing else is that fault.
    fn note_answers(&mut self, fault: Option<Fault>) {
        let (mut unasked, asked) = (Vec::new(), &mut self.asked);
        for word in self.tx.read() {
            let id = word as u16;
            if !asked.get_mut(usize::from(id)).is_some_and(std::mem::take) {
                unasked.push(Fault::NotAsked(id));
            }
        }
        let fault = fault.filter(|fault| matches!(fault, Fault::NotAsked(_)));
        assert_eq!(unasked, Vec::from_iter(fault));
    }

    fn send(&mut self, report: &mut Report) -> Result<(), Fault> {
        let len = usize::from(self.tx.bytes.borrow_mut().size());
        let frame = vec![0x5a; len];
        let (a, b) = frame.split_at(len / 3);
        let sent = self.engine.send(&[a, b], Sums::new(len % 2 == 0, len % 3 == 0));
        self.note_answers(sent.err());
        self.note_requests();
        if sent? {
            assert!(len <= usize::from(LONGEST));
            report.count("front: frame sent");
        }
        Ok(())
    }

    fn receive(&mut self, report: &mut Report) -> Result<(), Fault> {
        let received = self.engine.receive();
        let read = self.rx.read();
        let (slots, rest) = read.as_chunks::<RX>();
        assert!(rest.is_empty(), "each slot is read once, whole");
        let ids: Vec<u16> =
            slots.iter().map(|_| self.posted.pop_front().expect("a page was offered")).collect();
        let frame = received?;
        let chains = chains(slots, |slot| RxResponse::from(*slot).flags);
        let refused = chains.len() - usize::from(frame.is_some());
        let names = [
            "front: refused slots",
            "front: refused short",
            "front: refused long",
            "front: refused segments",
            "front: refused extra",
            "front: refused failed",
        ];
        let counted = self.engine.counters().refused;
        let mut total = 0;
        for ((now, before), name) in counted.iter().zip(&mut self.refused).zip(names) {
            if *now > *before {
                report.count(name);
            }
            total += *now - *before;
            *before = *now;
        }
        assert_eq!(total, refused as u64, "each refused frame is counted once");
        if let Some(frame) = frame {
            let chain = &chains[refused];
            let mut sum = 0;
            for at in &chain.data {
                let RxResponse { offset, status, .. } = slots[*at].into();
                assert!(status >= 0 && i64::from(offset) + i64::from(status) <= 4096);
                sum += i64::from(status);
            }
            assert_eq!((i64::from(frame.total()), chain.extras), (sum, 0));
            assert!((14..=LONGEST).contains(&frame.total()));
            let mut copy = vec![0; usize::from(frame.total()) + 1];
            let at = copy.len() / 3;
            assert_eq!(self.engine.copy(&frame, 0, &mut copy), usize::from(frame.total()));
            let count = self.engine.copy(&frame, at, &mut copy[..10]);
            assert_eq!(count, 10.min(usize::from(frame.total()) - at));
            self.held.push((frame, chain.data.iter().map(|at| ids[*at]).collect()));
            report.count("front: frame received");
        }
        self.note_requests();
        Ok(())
    }

    fn recycle(&mut self, report: &mut Report) {
        if self.held.is_empty() {
            return;
        }
        let which = self.rx.bytes.borrow_mut().below(self.held.len());
        let (frame, _) = self.held.swap_remove(which);
        self.engine.recycle(frame);
        self.note_requests();
        let held: usize = self.held.iter().map(|(_, ids)| ids.len()).sum();
        assert_eq!(self.posted.len() + held, N, "a page is lost");
        report.count("front: frame recycled");
    }

    fn is_dead(&mut self, fault: Fault) {
        assert_eq!(self.engine.fault(), Some(fault));
        let before = (self.tx.stores(), self.rx.stores());
        assert_eq!(self.engine.reap(), Err(fault));
        assert_eq!(self.engine.receive(), Err(fault));
        assert_eq!(self.engine.send(&[&[0; 60]], Sums::default()), Err(fault));
        assert_eq!(self.engine.arm(true), Err(fault));
        assert_eq!(self.engine.publish(), Notify::default());
        assert_eq!((self.tx.stores(), self.rx.stores()), before);
    }

    fn step(&mut self, op: u8, report: &mut Report) -> Result<(), Fault> {
        match op {
            0 | 1 => self.peer_answers(),
            2..=4 => self.peer_gives(),
            5 => self.tx.vent(),
            6 => self.rx.vent(),
            7 | 8 => return self.send(report),
            9..=11 => return self.receive(report),
            12 => self.recycle(report),
            13 => {
                let reaped = self.engine.reap();
                self.note_answers(reaped.err());
                return reaped;
            }
            14 => drop(self.engine.publish()),
            _ => {
                let waiting = self.tx.bytes.borrow_mut().yes();
                self.engine.arm(waiting)?;
            }
        }
        Ok(())
    }
}

/// A frontend's life with a hostile backend.
fn attack_front(bytes: &Source, report: &mut Report, neighbour: &mut Neighbour) {
    let pages = Pages::new(Netfront::<N>::PAGES);
    let mut table = vec![GrantEntry::default(); GRANTS_PER_PAGE as usize];
    let entries = table.as_mut_ptr();
    // SAFETY: the table outlives every use of it, and is reached by this pointer only.
    let mut grants = unsafe { GrantTable::new(entries.cast(), 1) };
    loop {
        let mut front = Frontend::new(&pages, bytes, &mut grants);
        assert_eq!(grants.in_use() as usize, Netfront::<N>::PAGES);
        while !bytes.borrow().data.is_empty() {
            let op = bytes.borrow_mut().byte() % 16;
            report.steps += 1;
            if let Err(fault) = front.step(op, report) {
                report.fault(fault);
                front.is_dead(fault);
                neighbour.lives(report);
                break;
            }
        }
        // The backend may keep a page, but not for ever.
        let mapped = 8 + bytes.borrow_mut().below(Netfront::<N>::PAGES);
        // SAFETY: an entry of the table that is granted.
        let flags = unsafe { &raw mut (*entries.add(mapped)).flags };
        // SAFETY: as above.
        unsafe { *flags |= GTF_READING };
        assert_eq!((front.engine.close(&mut grants), grants.in_use()), (1, 1));
        report.count("front: page still mapped");
        // SAFETY: as above.
        unsafe { *flags &= !GTF_READING };
        assert_eq!((front.engine.close(&mut grants), grants.in_use()), (0, 0));
        if bytes.borrow().data.is_empty() {
            break;
        }
        report.count("front: connected anew");
    }
}

/// Another interface of the same kernel, whose ends are both honest.
struct Neighbour {
    front: Netfront<2>,
    back: Netback,
    _table: Vec<GrantEntry>,
    _pages: Pages,
}

impl Neighbour {
    fn new() -> Self {
        let pages = Pages::new(Netfront::<2>::PAGES);
        let mut table = vec![GrantEntry::default(); GRANTS_PER_PAGE as usize];
        // SAFETY: table and pages live as long as the ends.
        let (front, back) = unsafe {
            let mut grants = GrantTable::new(table.as_mut_ptr().cast(), 1);
            let own = pages.0.iter().map(|page| OwnPage::new(*page, Mfn(0)));
            let front = Netfront::new(own, &mut grants, DomId(1), LONGEST, LONGEST);
            let (tx, rx) = (SharedPage::new(pages.0[0]), SharedPage::new(pages.0[1]));
            (front.expect("pages and grants"), Netback::new(tx, rx, LONGEST, LONGEST))
        };
        Self { front, back, _table: table, _pages: pages }
    }

    /// It goes on as if nothing had happened.
    fn lives(&mut self, report: &mut Report) {
        assert_eq!(self.front.send(&[&[1; 5000]], Sums::default()), Ok(true));
        let _ = self.front.publish();
        let frame = self.back.take_tx().expect("honest").expect("it was sent");
        assert_eq!(frame.total(), 5000);
        self.back.answer_tx(frame, Status::OKAY).expect("it was asked");
        let taken = self.back.take_rx(60, Sums::new(false, true));
        let pages = taken.expect("honest").expect("there are pages");
        self.back.answer_rx(pages.owed, true).expect("its turn");
        let _ = self.back.publish();
        let frame = self.front.receive().expect("honest").expect("it was given");
        assert_eq!(frame.total(), 60);
        self.front.recycle(frame);
        self.front.reap().expect("honest");
        report.count("neighbour: frame");
    }
}

/// Lives through what `data` says.
pub fn drive(data: &[u8], report: &mut Report) {
    let mut bytes = Bytes { data, haunt: 0, temper: 1, mutations: 0 };
    let (front, mood) = (bytes.yes(), usize::from(bytes.byte()));
    bytes.haunt = [0, 2, 8, 40][mood % 4];
    bytes.temper = [1, 4, 20, 80][mood / 4 % 4];
    let bytes = Rc::new(RefCell::new(bytes));
    let mut neighbour = Neighbour::new();
    match front {
        true => attack_front(&bytes, report, &mut neighbour),
        false => attack_back(&bytes, report, &mut neighbour),
    }
    neighbour.lives(report);
    report.mutations += bytes.borrow().mutations;
}
