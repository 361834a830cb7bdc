// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client: one request at a time, and watch events put aside meanwhile.
//!
//! It has no memory but its own: a reply lies in its buffer until the next call, events wait in a
//! bounded queue. A queue that was too short is no loss as long as it is known, since an event only
//! says where to look again: then everything has to be looked at.

use core::fmt;
use core::str::FromStr;

use super::{Header, Kind, PAYLOAD_MAX, Path, Refusal, Tx};
use crate::ring::{Consumer, Producer, Ring, RingFault};

/// How the daemon is woken, and waited for.
pub trait Link {
    /// What can go wrong.
    type Error;

    /// Tells the daemon that the rings have changed.
    ///
    /// # Errors
    /// It cannot be reached.
    fn notify(&mut self) -> Result<(), Self::Error>;

    /// Waits until the daemon may have changed the rings; may come back early.
    ///
    /// # Errors
    /// It has taken too long. Whoever asked is told so, and a late reply is thrown away.
    fn wait(&mut self) -> Result<(), Self::Error>;
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The daemon refuses.
    Refused(Refusal),
    /// The path is empty, too long, or has a NUL in it. Nothing was sent.
    BadPath,
    /// The request does not fit into a message. Nothing was sent.
    TooLong,
    /// The node's value is not what it should be.
    BadValue,
    /// The daemon could not be reached, or waited for.
    Link(E),
    /// The daemon's ring index is impossible.
    Ring(RingFault),
    /// What the daemon sends is no message. Nothing more can be said to it.
    Broken,
}

impl<E> From<RingFault> for Error<E> {
    fn from(fault: RingFault) -> Self {
        Self::Ring(fault)
    }
}

impl<E> Error<E> {
    /// Whether it says that there is no such node.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Refusal::NotFound))
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::BadPath => f.write_str("this is no path of xenstore"),
            Self::TooLong => f.write_str("the request is too long for a message of xenstore"),
            Self::BadValue => f.write_str("the node's value in xenstore is not what it should be"),
            Self::Link(error) => write!(f, "xenstore cannot be reached: {error}"),
            Self::Ring(fault) => fault.fmt(f),
            Self::Broken => f.write_str("the connection to xenstore is broken"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for Error<E> {}

/// What a watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Something at or below `path` has changed, or has not: compare.
    Changed {
        /// The node, relative if the watch is.
        path: &'a [u8],
        /// What the watch was registered with.
        token: &'a [u8],
    },
    /// More has changed than could be remembered: look at everything that is watched.
    Lost,
}

/// The names of a node's children.
#[derive(Clone, Debug)]
pub struct Names<'a>(&'a [u8]);

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    /// The next name; one that is no text is passed over.
    fn next(&mut self) -> Option<&'a str> {
        while !self.0.is_empty() {
            let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
            let (name, rest) = self.0.split_at(end);
            self.0 = rest.get(1..).unwrap_or_default();
            if let Ok(name) = core::str::from_utf8(name)
                && !name.is_empty()
            {
                return Some(name);
            }
        }
        None
    }
}

/// Bytes of events that are put aside.
const EVENT_BYTES: usize = 4096;

/// Events, each a length and a payload, oldest first.
struct Events {
    bytes: [u8; EVENT_BYTES],
    used: usize,
    /// Bytes of the event that was given out last.
    given: usize,
    lost: bool,
}

impl Events {
    /// The length of the record at `at`, with its two bytes of length.
    fn record(&self, at: usize) -> usize {
        2 + usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    fn forget_given(&mut self) {
        self.bytes.copy_within(self.given..self.used, 0);
        self.used -= self.given;
        self.given = 0;
    }

    fn push(&mut self, payload: &[u8]) {
        self.forget_given();
        let mut at = 0;
        while at < self.used {
            let next = at + self.record(at);
            if &self.bytes[at + 2..next] == payload {
                return;
            }
            at = next;
        }
        let end = self.used + 2 + payload.len();
        match (self.bytes.get_mut(self.used..end), u16::try_from(payload.len())) {
            (Some(room), Ok(len)) => {
                room[..2].copy_from_slice(&len.to_le_bytes());
                room[2..].copy_from_slice(payload);
                self.used = end;
            }
            _ => self.lost = true,
        }
    }

    fn pop(&mut self) -> Option<Event<'_>> {
        self.forget_given();
        if self.lost {
            // What is left is part of everything.
            self.lost = false;
            self.used = 0;
            return Some(Event::Lost);
        }
        if self.used == 0 {
            return None;
        }
        self.given = self.record(0);
        let mut texts = self.bytes[2..self.given].split(|b| *b == 0);
        let path = texts.next().unwrap_or_default();
        Some(Event::Changed { path, token: texts.next().unwrap_or_default() })
    }
}

/// A message as it comes in.
struct Incoming {
    header: [u8; Header::SIZE],
    /// Bytes of header and payload that are here.
    have: usize,
    payload: [u8; PAYLOAD_MAX],
}

/// A connection to xenstore.
pub struct Client<L> {
    requests: Producer,
    replies: Consumer,
    link: L,
    incoming: Incoming,
    events: Events,
    request: u32,
    broken: bool,
}

impl<L> fmt::Debug for Client<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("requests", &self.requests)
            .field("replies", &self.replies)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl<L: Link> Client<L> {
    /// A client on the xenstore page at `page`; goes on where the indices stand.
    ///
    /// # Safety
    /// `page` is aligned and stays mapped while the client is used; the daemon accesses it atomically.
    pub unsafe fn new(page: *mut u8, link: L) -> Self {
        // SAFETY: the caller's promise.
        let (requests, replies) =
            unsafe { (Ring::store_requests(page), Ring::store_replies(page)) };
        Self {
            requests: Producer::new(requests),
            replies: Consumer::new(replies),
            link,
            incoming: Incoming { header: [0; 16], have: 0, payload: [0; PAYLOAD_MAX] },
            events: Events { bytes: [0; EVENT_BYTES], used: 0, given: 0, lost: false },
            request: 0,
            broken: false,
        }
    }

    /// Takes in what is there, up to the end of a message that is not an event.
    fn receive(&mut self) -> Result<Option<Header>, Error<L::Error>> {
        loop {
            let Incoming { header, have, payload } = &mut self.incoming;
            let full = self.replies.is_full()?;
            let parsed = Header::from_bytes(*header);
            let target = if *have < Header::SIZE {
                &mut header[*have..]
            } else if parsed.len as usize > PAYLOAD_MAX {
                self.broken = true;
                return Err(Error::Broken);
            } else {
                &mut payload[*have - Header::SIZE..parsed.len as usize]
            };
            let wanted = target.len();
            let count = self.replies.read(target)?;
            *have += count;
            if full && count > 0 {
                self.link.notify().map_err(Error::Link)?;
            }
            if count < wanted {
                return Ok(None);
            }
            if *have == Header::SIZE && wanted != 0 {
                continue; // The header only; a payload of 0 bytes is complete as well, next time.
            }
            *have = 0;
            if parsed.kind == Kind::WatchEvent as u32 {
                self.events.push(&self.incoming.payload[..parsed.len as usize]);
            } else {
                return Ok(Some(parsed));
            }
        }
    }

    /// Sends all of `bytes`, taking in meanwhile what the daemon has to get rid of first.
    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Error<L::Error>> {
        while !bytes.is_empty() {
            let count = self.requests.write(bytes)?;
            bytes = &bytes[count..];
            if !bytes.is_empty() {
                self.link.notify().map_err(Error::Link)?;
                // A reply here is a late one, to a call that was given up.
                while self.receive()?.is_some() {}
                if self.requests.room()? == 0 {
                    self.link.wait().map_err(Error::Link)?;
                }
            }
        }
        Ok(())
    }

    /// Asks the daemon: the payload is all of `parts`, the answer is the payload of its reply.
    ///
    /// # Errors
    /// [`Error`].
    pub fn call(&mut self, kind: Kind, tx: Tx, parts: &[&[u8]]) -> Result<&[u8], Error<L::Error>> {
        if self.broken {
            return Err(Error::Broken);
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > PAYLOAD_MAX {
            return Err(Error::TooLong);
        }
        self.request = self.request.wrapping_add(1);
        let request = self.request;
        let header = Header { kind: kind as u32, request, transaction: tx.0, len: len as u32 };
        // Half a request cannot be taken back.
        self.broken = true;
        self.send(&header.to_bytes())?;
        for part in parts {
            self.send(part)?;
        }
        self.broken = false;
        self.link.notify().map_err(Error::Link)?;
        let reply = loop {
            match self.receive()? {
                Some(reply) if reply.request == request => break reply,
                Some(_) => {}
                None => self.link.wait().map_err(Error::Link)?,
            }
        };
        let payload = &self.incoming.payload[..reply.len as usize];
        if reply.kind == kind as u32 {
            Ok(payload)
        } else if reply.kind == Kind::Error as u32 {
            let name = payload.split(|b| *b == 0).next().unwrap_or_default();
            Err(Error::Refused(Refusal::from_name(name)))
        } else {
            self.broken = true;
            Err(Error::Broken)
        }
    }

    fn on_path(
        &mut self,
        kind: Kind,
        tx: Tx,
        path: Path<'_>,
        rest: &[u8],
    ) -> Result<&[u8], Error<L::Error>> {
        let [base, step, key] = path.parts().ok_or(Error::BadPath)?;
        self.call(kind, tx, &[base, step, key, b"\0", rest])
    }

    /// A node's value.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read<'p>(
        &mut self,
        tx: Tx,
        path: impl Into<Path<'p>>,
    ) -> Result<&[u8], Error<L::Error>> {
        self.on_path(Kind::Read, tx, path.into(), &[])
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// [`Error`]; [`Error::BadValue`] if it is no text.
    pub fn read_text<'p>(
        &mut self,
        tx: Tx,
        path: impl Into<Path<'p>>,
    ) -> Result<&str, Error<L::Error>> {
        core::str::from_utf8(self.read(tx, path)?).map_err(|_| Error::BadValue)
    }

    /// What a node's value says, or `None` if there is no such node.
    ///
    /// # Errors
    /// [`Error`]; [`Error::BadValue`] if it says no such thing.
    pub fn read_parsed<'p, T: FromStr>(
        &mut self,
        tx: Tx,
        path: impl Into<Path<'p>>,
    ) -> Result<Option<T>, Error<L::Error>> {
        match self.read_text(tx, path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| Error::BadValue),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a node's value, and makes the node if there is none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn write<'p>(
        &mut self,
        tx: Tx,
        path: impl Into<Path<'p>>,
        value: &[u8],
    ) -> Result<(), Error<L::Error>> {
        self.on_path(Kind::Write, tx, path.into(), value).map(drop)
    }

    /// Sets a node's value to a number.
    ///
    /// # Errors
    /// [`Error`].
    pub fn write_number<'p>(
        &mut self,
        tx: Tx,
        path: impl Into<Path<'p>>,
        mut value: u64,
    ) -> Result<(), Error<L::Error>> {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.write(tx, path, &digits[at..])
    }

    /// The names of a node's children.
    ///
    /// # Errors
    /// [`Error`].
    pub fn directory<'p>(
        &mut self,
        tx: Tx,
        path: impl Into<Path<'p>>,
    ) -> Result<Names<'_>, Error<L::Error>> {
        self.on_path(Kind::Directory, tx, path.into(), &[]).map(Names)
    }

    /// Makes a node if there is none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn mkdir<'p>(&mut self, tx: Tx, path: impl Into<Path<'p>>) -> Result<(), Error<L::Error>> {
        self.on_path(Kind::Mkdir, tx, path.into(), &[]).map(drop)
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rm<'p>(&mut self, tx: Tx, path: impl Into<Path<'p>>) -> Result<(), Error<L::Error>> {
        self.on_path(Kind::Rm, tx, path.into(), &[]).map(drop)
    }

    /// Asks for an event with `token` for each change at or below `path`. One comes at once.
    ///
    /// # Errors
    /// [`Error`].
    pub fn watch<'p>(
        &mut self,
        path: impl Into<Path<'p>>,
        token: &str,
    ) -> Result<(), Error<L::Error>> {
        self.watching(Kind::Watch, path.into(), token)
    }

    /// Undoes [`Self::watch`]. Events that are on their way still come.
    ///
    /// # Errors
    /// [`Error`].
    pub fn unwatch<'p>(
        &mut self,
        path: impl Into<Path<'p>>,
        token: &str,
    ) -> Result<(), Error<L::Error>> {
        self.watching(Kind::Unwatch, path.into(), token)
    }

    fn watching(&mut self, kind: Kind, path: Path<'_>, token: &str) -> Result<(), Error<L::Error>> {
        let [base, step, key] = path.parts().ok_or(Error::BadPath)?;
        if token.contains('\0') {
            return Err(Error::BadPath);
        }
        self.call(kind, Tx::NONE, &[base, step, key, b"\0", token.as_bytes(), b"\0"]).map(drop)
    }

    /// What follows with the answer is to happen in one instant, or not at all.
    ///
    /// # Errors
    /// [`Error`].
    pub fn transaction_start(&mut self) -> Result<Tx, Error<L::Error>> {
        let reply = self.call(Kind::TransactionStart, Tx::NONE, &[b"\0"])?;
        let text = reply.split(|b| *b == 0).next().unwrap_or_default();
        let number = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        match number {
            None | Some(0) => Err(Error::BadValue),
            Some(number) => Ok(Tx(number)),
        }
    }

    /// The end of a transaction: it happens, or is forgotten.
    ///
    /// # Errors
    /// [`Error`]; [`Refusal::Again`] if it did not happen because of somebody else's changes.
    pub fn transaction_end(&mut self, tx: Tx, commit: bool) -> Result<(), Error<L::Error>> {
        let word: &[u8] = if commit { b"T\0" } else { b"F\0" };
        self.call(Kind::TransactionEnd, tx, &[word]).map(drop)
    }

    /// Does all of `body` in one instant, trying up to `tries` times as long as others interfere.
    ///
    /// # Errors
    /// What `body` says: then nothing has happened. [`Refusal::Again`] if it was in vain.
    pub fn transaction<T>(
        &mut self,
        tries: u32,
        mut body: impl FnMut(&mut Self, Tx) -> Result<T, Error<L::Error>>,
    ) -> Result<T, Error<L::Error>> {
        let again = Error::Refused(Refusal::Again);
        for _ in 0..tries {
            let tx = self.transaction_start()?;
            let done = body(self, tx);
            let ended = self.transaction_end(tx, done.is_ok());
            match (done, ended) {
                (Ok(done), Ok(())) => return Ok(done),
                (Err(Error::Refused(Refusal::Again)), _)
                | (Ok(_), Err(Error::Refused(Refusal::Again))) => {}
                (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            }
        }
        Err(again)
    }

    /// The oldest event that has not been given out, without waiting for one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, Error<L::Error>> {
        if self.broken {
            return Err(Error::Broken);
        }
        // A reply here is a late one, to a call that was given up.
        while self.receive()?.is_some() {}
        Ok(self.events.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{PAGE_SIZE, xenstore};
    use crate::fake::store::{FakeLink, FakeStore, TooLong};
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    /// A store, a client of it, and the page between them, whose indices start at `at`.
    struct Bench {
        client: Client<FakeLink>,
        store: Rc<RefCell<FakeStore>>,
        page: Box<Page>,
    }

    fn bench(at: u32, appetite: usize) -> Bench {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        for offset in
            [xenstore::REQ_CONS, xenstore::REQ_PROD, xenstore::RSP_CONS, xenstore::RSP_PROD]
        {
            page.0[offset..offset + 4].copy_from_slice(&at.to_ne_bytes());
        }
        let mut store = FakeStore::new();
        store.appetite = appetite;
        let memory = page.0.as_mut_ptr();
        // SAFETY: the bench keeps the page as long as both ends.
        unsafe { store.connect(memory, 5) };
        let store = Rc::new(RefCell::new(store));
        let link = FakeLink { store: Rc::clone(&store), patience: u32::MAX };
        // SAFETY: as above.
        let client = unsafe { Client::new(memory, link) };
        Bench { client, store, page }
    }

    fn events(client: &mut Client<FakeLink>) -> Vec<(String, String)> {
        client.link.wait().unwrap();
        let mut all = Vec::new();
        while let Some(event) = client.next_event().unwrap() {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            all.push(match event {
                Event::Changed { path, token } => (text(path), text(token)),
                Event::Lost => ("*".into(), String::new()),
            });
        }
        all
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u8, Vec<u8>),
        Read(u8),
        Rm(u8),
        Mkdir(u8),
        Directory,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let node = || 0u8..6;
        let value = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..20),
            1 => proptest::collection::vec(any::<u8>(), 1000..2049),
        ];
        let step = prop_oneof![
            (node(), value).prop_map(|(node, value)| Step::Write(node, value)),
            node().prop_map(Step::Read),
            node().prop_map(Step::Rm),
            node().prop_map(Step::Mkdir),
            Just(Step::Directory),
        ];
        proptest::collection::vec(step, 0..30)
    }

    proptest! {
        /// It is a map, however the messages are cut, wherever the indices stand.
        #[test]
        fn what_was_written_is_read(
            at in prop_oneof![any::<u32>(), u32::MAX - 3000..=u32::MAX],
            appetite in prop_oneof![Just(0), 1usize..40],
            steps in steps(),
        ) {
            let mut bench = bench(at, appetite);
            let client = &mut bench.client;
            let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            client.mkdir(Tx::NONE, "data").unwrap();
            for step in steps {
                match step {
                    Step::Write(node, value) => {
                        let key = format!("n{node}");
                        client.write(Tx::NONE, ("data", key.as_str()), &value).unwrap();
                        model.insert(node, value);
                    }
                    Step::Read(node) => {
                        let path = format!("data/n{node}");
                        match (client.read(Tx::NONE, path.as_str()), model.get(&node)) {
                            (Ok(value), Some(wanted)) => prop_assert_eq!(value, wanted),
                            (Err(error), None) => prop_assert!(error.is_not_found()),
                            (got, wanted) => prop_assert!(false, "{:?} {:?}", got, wanted),
                        }
                    }
                    Step::Rm(node) => {
                        client.rm(Tx::NONE, format!("data/n{node}").as_str()).unwrap();
                        model.remove(&node);
                    }
                    Step::Mkdir(node) => {
                        client.mkdir(Tx::NONE, format!("data/n{node}").as_str()).unwrap();
                        model.entry(node).or_default();
                    }
                    Step::Directory => {
                        let names: Vec<_> =
                            client.directory(Tx::NONE, "data").unwrap().map(str::to_owned).collect();
                        let wanted: Vec<_> = model.keys().map(|node| format!("n{node}")).collect();
                        prop_assert_eq!(names, wanted);
                    }
                }
            }
        }

        /// Whatever the daemon sends, the client says so and reads nothing that is not there.
        #[test]
        fn nonsense_from_the_daemon_is_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 16..1024), lie in proptest::option::of(any::<u32>())
        ) {
            let mut bench = bench(0, 0);
            let produced = lie.unwrap_or(bytes.len() as u32);
            bench.page.0[xenstore::RSP..xenstore::RSP + bytes.len()].copy_from_slice(&bytes);
            bench.page.0[xenstore::RSP_PROD..xenstore::RSP_PROD + 4]
                .copy_from_slice(&produced.to_ne_bytes());
            bench.client.link.patience = 0;
            prop_assert!(bench.client.read(Tx::NONE, "a").is_err());
            prop_assert!(bench.client.read(Tx::NONE, "a").is_err());
            let _ = bench.client.next_event().is_ok();
        }
    }

    #[test]
    fn a_watch_fires_at_once_and_for_what_is_below() {
        let mut bench = bench(0, 0);
        let client = &mut bench.client;
        client.watch("backend/vif", "v").unwrap();
        assert_eq!(events(client), [("backend/vif".into(), "v".into())]);
        bench.store.borrow_mut().set("/local/domain/5/backend/vif/3/0/state", "1");
        bench.store.borrow_mut().set("/local/domain/5/backend/other", "1");
        assert_eq!(events(client), [("backend/vif/3/0/state".into(), "v".into())]);
        // Taking away what is above is seen, too.
        bench.store.borrow_mut().remove("/local/domain/5/backend");
        assert_eq!(events(client), [("backend/vif".into(), "v".into())]);
        client.unwatch("backend/vif", "v").unwrap();
        bench.store.borrow_mut().set("/local/domain/5/backend/vif", "1");
        assert_eq!(events(client), []);
        assert_eq!(client.unwatch("backend/vif", "v"), Err(Error::Refused(Refusal::NotFound)));
    }

    #[test]
    fn events_during_a_call_are_put_aside_and_too_many_are_one() {
        let mut bench = bench(0, 100);
        let client = &mut bench.client;
        client.watch("w", "t").unwrap();
        assert_eq!(events(client).len(), 1);
        for n in 0..10 {
            bench.store.borrow_mut().set(&format!("/local/domain/5/w/{}", n % 5), "x");
        }
        client.write(Tx::NONE, "x", b"y").unwrap();
        // Twice the same is once.
        let wanted: Vec<_> = (0..5).map(|n| (format!("w/{n}"), "t".to_owned())).collect();
        assert_eq!(events(client), wanted);
        for n in 0..2000 {
            bench.store.borrow_mut().set(&format!("/local/domain/5/w/{n}"), "x");
        }
        client.write(Tx::NONE, "x", b"y").unwrap();
        assert_eq!(events(client), [("*".into(), String::new())]);
        bench.store.borrow_mut().set("/local/domain/5/w/7", "x");
        assert_eq!(events(client), [("w/7".into(), "t".into())]);
    }

    #[test]
    fn a_transaction_is_tried_again_but_not_for_ever() {
        let mut bench = bench(0, 0);
        let client = &mut bench.client;
        let mut runs = 0;
        bench.store.borrow_mut().conflicts = 3;
        let done = client.transaction(4, |client, tx| {
            runs += 1;
            client.write_number(tx, ("t", "a"), 10)?;
            client.write_number(tx, ("t", "b"), u64::MAX)?;
            Ok(runs)
        });
        assert_eq!(done, Ok(4));
        assert_eq!(client.read_text(Tx::NONE, "t/b"), Ok("18446744073709551615"));
        assert_eq!(client.read_parsed(Tx::NONE, "t/a"), Ok(Some(10u8)));
        assert_eq!(client.read_parsed::<u8>(Tx::NONE, "t/b"), Err(Error::BadValue));
        assert_eq!(client.read_parsed::<u8>(Tx::NONE, "t/c"), Ok(None));

        bench.store.borrow_mut().conflicts = 3;
        let vain = client.transaction(3, |client, tx| client.write(tx, "t/c", b"1"));
        assert_eq!(vain, Err(Error::Refused(Refusal::Again)));
        assert_eq!(client.read_parsed::<u8>(Tx::NONE, "t/c"), Ok(None));
    }

    #[test]
    fn a_transaction_that_fails_has_not_happened() {
        let mut bench = bench(0, 0);
        let client = &mut bench.client;
        let failed = client.transaction(5, |client, tx| {
            client.write(tx, "a", b"1")?;
            client.read(tx, "nothing").map(drop)
        });
        assert_eq!(failed, Err(Error::Refused(Refusal::NotFound)));
        assert!(client.read(Tx::NONE, "a").is_err_and(|error| error.is_not_found()));
        // None is left open, whatever happened.
        for _ in 0..10 {
            client.transaction_start().unwrap();
        }
        assert_eq!(client.transaction_start(), Err(Error::Refused(Refusal::NoSpace)));
    }

    #[test]
    fn what_cannot_be_said_is_not_sent() {
        let mut bench = bench(0, 0);
        let client = &mut bench.client;
        assert_eq!(client.read(Tx::NONE, ""), Err(Error::BadPath));
        assert_eq!(client.read(Tx::NONE, "a\0b"), Err(Error::BadPath));
        assert_eq!(client.watch("a", "t\0"), Err(Error::BadPath));
        assert_eq!(client.write(Tx::NONE, "a", &[0; 4095]), Err(Error::TooLong));
        assert_eq!(client.write(Tx::NONE, "a", &[0; 2049]), Err(Error::Refused(Refusal::NoSpace)));
        assert_eq!(client.write(Tx::NONE, "a", &[0; 2048]), Ok(()));
    }

    #[test]
    fn a_late_reply_is_not_taken_for_the_next() {
        let mut bench = bench(0, 0);
        bench.store.borrow_mut().set("/local/domain/5/a", "A");
        bench.store.borrow_mut().set("/local/domain/5/b", "B");
        let client = &mut bench.client;
        client.link.patience = 0;
        assert_eq!(client.read(Tx::NONE, "a"), Err(Error::Link(TooLong)));
        client.link.patience = 10;
        assert_eq!(client.read(Tx::NONE, "b"), Ok(&b"B"[..]));
        assert_eq!(client.read(Tx::NONE, "a"), Ok(&b"A"[..]));
    }

    #[test]
    fn half_a_request_breaks_the_connection() {
        let mut bench = bench(0, 0);
        let client = &mut bench.client;
        client.link.patience = 0;
        assert_eq!(client.write(Tx::NONE, "a", &[0; 2000]), Err(Error::Link(TooLong)));
        client.link.patience = 10;
        assert_eq!(client.write(Tx::NONE, "a", b""), Err(Error::Broken));
        assert_eq!(client.next_event(), Err(Error::Broken));
    }
}
