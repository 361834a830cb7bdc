// SPDX-License-Identifier: MIT OR Apache-2.0
//! A store of plain memory, for tests of what is said through it.

use std::cell::RefCell;
use std::rc::Rc;

use tdf_xen::abi::PAGE_SIZE;
use tdf_xen::fake::store::{FakeLink, FakeStore};
use tdf_xen::xenstore::Client;

/// The domain that the client is.
pub const DOMAIN: u16 = 5;

/// A store, and the switch's connection to it.
pub struct Bench {
    pub client: Client<FakeLink>,
    pub store: Rc<RefCell<FakeStore>>,
}

#[repr(align(4096))]
struct Page([u8; PAGE_SIZE]);

/// A store in which nothing is.
pub fn bench() -> Bench {
    let page = Box::leak(Box::new(Page([0; PAGE_SIZE]))).0.as_mut_ptr();
    let mut store = FakeStore::new();
    // SAFETY: kept for ever.
    unsafe { store.connect(page, DOMAIN) };
    let store = Rc::new(RefCell::new(store));
    let link = FakeLink { store: Rc::clone(&store), patience: u32::MAX };
    // SAFETY: as above.
    let client = unsafe { Client::new(page, link) };
    Bench { client, store }
}

impl Bench {
    /// Sets a node in the switch's home, as dom0.
    pub fn set(&self, path: &str, value: &str) {
        self.store.borrow_mut().set(&home(path), value);
    }

    /// A node in the switch's home.
    pub fn get(&self, path: &str) -> Option<String> {
        self.store.borrow().get(&home(path))
    }
}

fn home(path: &str) -> String {
    format!("/local/domain/{DOMAIN}/{path}")
}
