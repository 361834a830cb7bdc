// SPDX-License-Identifier: MIT OR Apache-2.0
//! A xenstore of plain memory, at the other end of any number of pages.
//!
//! It answers when it is told to run, in pieces of a chosen size, and can refuse a transaction, so
//! that a client meets all that a real daemon may do. A test can act as dom0 on it directly.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use crate::ring::{Consumer, Producer, Ring};
use crate::xenstore::{Header, Kind, Link, PAYLOAD_MAX, Refusal};

/// Most watches of a connection.
const WATCHES_MAX: usize = 128;
/// Most transactions of a connection.
const TRANSACTIONS_MAX: usize = 10;
/// Most bytes of a node's value.
const VALUE_MAX: usize = 2048;

type Tree = BTreeMap<String, Vec<u8>>;

struct Watch {
    /// As registered.
    path: String,
    token: String,
}

struct Transaction {
    tree: Tree,
    /// The store's age at its start.
    age: u64,
    changed: BTreeSet<String>,
}

struct Connection {
    home: String,
    requests: Consumer,
    replies: Producer,
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
}

impl Connection {
    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.home) }
    }

    fn send(&mut self, kind: Kind, request: u32, transaction: u32, payload: &[u8]) {
        let header = Header { kind: kind as u32, request, transaction, len: payload.len() as u32 };
        self.outgoing.extend(header.to_bytes());
        self.outgoing.extend(payload);
    }

    /// Tells of a change at `path` whoever watches it, or something below it that is gone with it.
    fn tell(&mut self, path: &str) {
        let mut events = Vec::new();
        for watch in &self.watches {
            let watched = self.absolute(&watch.path);
            let seen = if is_within(path, &watched) {
                // As the watch was: relative to the home, or not.
                let relative = !watch.path.starts_with('/');
                let short = path.strip_prefix(&self.home).and_then(|p| p.strip_prefix('/'));
                if relative { short.unwrap_or(path) } else { path }
            } else if is_within(&watched, path) {
                &watch.path
            } else {
                continue;
            };
            events.push(format!("{seen}\0{}\0", watch.token));
        }
        for event in events {
            self.send(Kind::WatchEvent, 0, 0, event.as_bytes());
        }
    }
}

fn is_within(path: &str, base: &str) -> bool {
    path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The nodes just below `path`.
fn children(tree: &Tree, path: &str) -> BTreeSet<String> {
    let prefix = format!("{}/", path.trim_end_matches('/'));
    tree.range(prefix.clone()..)
        .map_while(|(name, _)| name.strip_prefix(&prefix))
        .map(|rest| rest.split('/').next().unwrap_or_default().to_owned())
        .collect()
}

/// Sets a value, and makes the nodes above.
fn put(tree: &mut Tree, path: &str, value: &[u8]) {
    for (at, _) in path.match_indices('/').skip(1) {
        tree.entry(path[..at].to_owned()).or_default();
    }
    tree.insert(path.to_owned(), value.to_vec());
}

fn cut(tree: &mut Tree, path: &str) -> bool {
    let before = tree.len();
    tree.retain(|name, _| !is_within(name, path));
    tree.len() < before
}

/// The fake.
#[derive(Default)]
pub struct FakeStore {
    tree: Tree,
    age: u64,
    next_transaction: u32,
    connections: Vec<Connection>,
    /// So many transactions will find that somebody else has changed something.
    pub conflicts: u32,
    /// Most bytes that it reads and writes of each ring at a time; 0 is no limit.
    pub appetite: usize,
}

impl FakeStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the xenstore page at `page` from now on, for a domain whose home is
    /// `/local/domain/DOMID`.
    ///
    /// # Safety
    /// The page is aligned and outlives the store; the other end accesses it atomically.
    pub unsafe fn connect(&mut self, page: *mut u8, domid: u16) {
        // SAFETY: the caller's promise.
        let (requests, replies) =
            unsafe { (Ring::store_requests(page), Ring::store_replies(page)) };
        self.connections.push(Connection {
            home: format!("/local/domain/{domid}"),
            requests: Consumer::new(requests),
            replies: Producer::new(replies),
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
        });
    }

    /// A node's value.
    pub fn get(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(self.tree.get(path)?).into_owned())
    }

    /// Sets a value as dom0.
    pub fn set(&mut self, path: &str, value: &str) {
        put(&mut self.tree, path, value.as_bytes());
        self.changed(path);
    }

    /// Removes a node and all below it as dom0.
    pub fn remove(&mut self, path: &str) {
        if cut(&mut self.tree, path) {
            self.changed(path);
        }
    }

    /// The names of a node's children.
    pub fn list(&self, path: &str) -> Vec<String> {
        children(&self.tree, path).into_iter().collect()
    }

    fn changed(&mut self, path: &str) {
        self.age += 1;
        for connection in &mut self.connections {
            connection.tell(path);
        }
    }

    /// Reads what the clients have written, and answers.
    ///
    /// # Panics
    /// If a client breaks the rules for which the real daemon would close its connection.
    pub fn run(&mut self) {
        for index in 0..self.connections.len() {
            let most = if self.appetite == 0 { usize::MAX } else { self.appetite };
            let connection = &mut self.connections[index];
            let mut buffer = vec![0; most.min(1024)];
            let count = connection.requests.read(&mut buffer).expect("the client's index is sane");
            connection.incoming.extend(&buffer[..count]);
            while let Some((header, payload)) = self.take(index) {
                self.answer(index, header, &payload);
            }
            let connection = &mut self.connections[index];
            let (bytes, _) = connection.outgoing.as_slices();
            let bytes = &bytes[..bytes.len().min(most)];
            let count = connection.replies.write(bytes).expect("the client's index is sane");
            connection.outgoing.drain(..count);
        }
    }

    /// A whole message of a client.
    fn take(&mut self, index: usize) -> Option<(Header, Vec<u8>)> {
        let incoming = &mut self.connections[index].incoming;
        let header = Header::from_bytes(*incoming.first_chunk()?);
        let len = header.len as usize;
        assert!(len <= PAYLOAD_MAX, "a message of {len} bytes");
        if incoming.len() < Header::SIZE + len {
            return None;
        }
        let message: Vec<u8> = incoming.drain(..Header::SIZE + len).collect();
        Some((header, message[Header::SIZE..].to_vec()))
    }

    fn answer(&mut self, index: usize, header: Header, payload: &[u8]) {
        let kind = Kind::from_number(header.kind);
        let result = match kind {
            Some(kind) => self.execute(index, kind, header.transaction, payload),
            None => Err(Refusal::NotImplemented),
        };
        let connection = &mut self.connections[index];
        let (request, tx) = (header.request, header.transaction);
        match (kind, result) {
            (Some(kind), Ok((reply, changed))) => {
                connection.send(kind, request, tx, &reply);
                if kind == Kind::Watch {
                    let watch = connection.watches.last().expect("it was just registered");
                    let event = format!("{}\0{}\0", watch.path, watch.token);
                    connection.send(Kind::WatchEvent, 0, 0, event.as_bytes());
                }
                for path in changed {
                    self.changed(&path);
                }
            }
            (_, Err(refusal)) => {
                let name = format!("{}\0", refusal.name());
                connection.send(Kind::Error, request, tx, name.as_bytes());
            }
            (None, Ok(_)) => {}
        }
    }

    /// The reply's payload, and what has changed for everybody.
    #[allow(clippy::too_many_lines, reason = "one arm for each kind of request")]
    fn execute(
        &mut self,
        index: usize,
        kind: Kind,
        tx: u32,
        payload: &[u8],
    ) -> Result<(Vec<u8>, Vec<String>), Refusal> {
        let connection = &mut self.connections[index];
        let end = payload.iter().position(|b| *b == 0).ok_or(Refusal::Invalid)?;
        let (first, rest) = (&payload[..end], &payload[end + 1..]);
        let first = std::str::from_utf8(first).map_err(|_| Refusal::Invalid)?;
        let ok = || (b"OK\0".to_vec(), Vec::new());
        match kind {
            Kind::TransactionStart => {
                if connection.transactions.len() >= TRANSACTIONS_MAX {
                    return Err(Refusal::NoSpace);
                }
                self.next_transaction += 1;
                let (tree, age) = (self.tree.clone(), self.age);
                let transaction = Transaction { tree, age, changed: BTreeSet::new() };
                connection.transactions.insert(self.next_transaction, transaction);
                return Ok((format!("{}\0", self.next_transaction).into_bytes(), Vec::new()));
            }
            Kind::TransactionEnd => {
                let transaction = connection.transactions.remove(&tx).ok_or(Refusal::NotFound)?;
                if first != "T" {
                    return Ok(ok());
                }
                if self.conflicts > 0 || transaction.age != self.age {
                    self.conflicts = self.conflicts.saturating_sub(1);
                    return Err(Refusal::Again);
                }
                self.tree = transaction.tree;
                return Ok((b"OK\0".to_vec(), transaction.changed.into_iter().collect()));
            }
            Kind::Watch | Kind::Unwatch => {
                let token = rest.strip_suffix(b"\0").ok_or(Refusal::Invalid)?;
                let token = std::str::from_utf8(token).map_err(|_| Refusal::Invalid)?;
                let known =
                    connection.watches.iter().position(|w| w.path == first && w.token == token);
                match (kind, known) {
                    (Kind::Watch, Some(_)) => return Err(Refusal::Exists),
                    (Kind::Watch, None) if connection.watches.len() >= WATCHES_MAX => {
                        return Err(Refusal::TooBig);
                    }
                    (Kind::Watch, None) => {
                        let (path, token) = (first.to_owned(), token.to_owned());
                        connection.watches.push(Watch { path, token });
                    }
                    (_, None) => return Err(Refusal::NotFound),
                    (_, Some(known)) => drop(connection.watches.remove(known)),
                }
                return Ok(ok());
            }
            Kind::GetDomainPath => {
                return Ok((format!("/local/domain/{first}\0").into_bytes(), Vec::new()));
            }
            Kind::SetPerms | Kind::GetPerms => return Ok(ok()),
            _ => {}
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-/_@".contains(&b);
        let slashes = first.contains("//") || (first.len() > 1 && first.ends_with('/'));
        if first.is_empty() || slashes || !first.bytes().all(legal) {
            return Err(Refusal::Invalid);
        }
        let path = connection.absolute(first);
        let mut transaction = match tx {
            0 => None,
            tx => Some(connection.transactions.get_mut(&tx).ok_or(Refusal::NotFound)?),
        };
        let tree = match &mut transaction {
            Some(transaction) => &mut transaction.tree,
            None => &mut self.tree,
        };
        let exists = tree.contains_key(&path) || path == "/";
        match kind {
            Kind::Read => {
                let value = tree.get(&path).ok_or(Refusal::NotFound)?.clone();
                return Ok((value, Vec::new()));
            }
            Kind::Directory if !exists => return Err(Refusal::NotFound),
            Kind::Directory => {
                let names: String =
                    children(tree, &path).into_iter().map(|name| name + "\0").collect();
                if names.len() > PAYLOAD_MAX {
                    return Err(Refusal::TooBig);
                }
                return Ok((names.into_bytes(), Vec::new()));
            }
            Kind::Write if rest.len() > VALUE_MAX => return Err(Refusal::NoSpace),
            Kind::Write => put(tree, &path, rest),
            Kind::Mkdir if exists => return Ok(ok()),
            Kind::Mkdir => put(tree, &path, b""),
            Kind::Rm => {
                if !cut(tree, &path) {
                    // As the real one: no error if the node above is there.
                    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                    let known = above.is_empty() || tree.contains_key(above);
                    return if known { Ok(ok()) } else { Err(Refusal::NotFound) };
                }
            }
            _ => return Err(Refusal::NotImplemented),
        }
        let changed = match transaction {
            Some(transaction) => {
                transaction.changed.insert(path);
                Vec::new()
            }
            None => vec![path],
        };
        Ok((b"OK\0".to_vec(), changed))
    }
}

/// A client's way to a fake store: to wait is to let it run.
#[derive(Clone)]
pub struct FakeLink {
    /// The store.
    pub store: Rc<RefCell<FakeStore>>,
    /// Waits until it gives up; each takes one.
    pub patience: u32,
}

/// The store has taken too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Link for FakeLink {
    type Error = TooLong;

    fn notify(&mut self) -> Result<(), TooLong> {
        Ok(())
    }

    fn wait(&mut self) -> Result<(), TooLong> {
        self.patience = self.patience.checked_sub(1).ok_or(TooLong)?;
        self.store.borrow_mut().run();
        Ok(())
    }
}

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the fake store has taken too long")
    }
}
