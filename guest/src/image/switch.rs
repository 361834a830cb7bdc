// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch on real Xen: its memory, and its connection to xenstore.

use tdf_guest::machine::Machine;
use tdf_guest::paging::WINDOW_PAGES;
use tdf_guest::switch::exchange::{Exchange, Lending};
use tdf_guest::switch::fabric::{Direction, Fabric};
use tdf_guest::switch::fdb::Fdb;
use tdf_guest::switch::options::Options;
use tdf_guest::switch::pool::Pool;
use tdf_guest::switch::{End, Switch};
use tdf_xen::abi::{Mfn, PAGE_SIZE, Port, start_info};
use tdf_xen::grant::{GrantOpError, GrantTable};
use tdf_xen::hypercall::{Shutdown, Xen, XenError};
use tdf_xen::xenstore::{Client, Link};

use super::xen::Native;
use super::{heap, memory, traps};

/// Virtual ns that xenstore's daemon may take to answer.
const PATIENCE_NS: i64 = 60_000_000_000;
/// `ETIMEDOUT`.
const TIMED_OUT: XenError = XenError::Other(110);
/// One page in so many is not for frames, but for everything else.
const HEAP_SHARE: usize = 4;

/// Frames of the grant table: 512 pages can be lent by each.
const GRANT_FRAMES: usize = 8;

/// How the kernel reaches xenstore's daemon.
struct Daemon {
    machine: &'static Machine<'static, Native>,
    port: Port,
    /// Until when it may take, once it was asked.
    deadline_ns: Option<i64>,
}

impl Link for Daemon {
    type Error = XenError;

    fn notify(&mut self) -> Result<(), XenError> {
        self.deadline_ns = None;
        self.machine.xen.notify(self.port)
    }

    fn wait(&mut self) -> Result<(), XenError> {
        let now = self.machine.system_time_ns();
        let deadline = *self.deadline_ns.get_or_insert(now.saturating_add(PATIENCE_NS));
        if now >= deadline {
            return Err(TIMED_OUT);
        }
        self.machine.wait_for(self.port, deadline)
    }
}

/// The grant table, mapped at `at`.
fn lending(at: usize) -> Result<Lending, GrantOpError> {
    let (_, most) = Native.gnttab_query_size()?;
    let mut frames = [0; GRANT_FRAMES];
    let frames = &mut frames[..GRANT_FRAMES.min(most as usize)];
    Native.gnttab_setup_table(frames)?;
    // SAFETY: the end of the window, which nobody else uses; the table is Xen's and this kernel's only,
    // and lends nothing but what is reserved.
    let grants = unsafe { GrantTable::new(memory::map_frames(at, frames)?, frames.len() as u32) };
    Ok(Lending { grants, frame: memory::frame_of })
}

/// Runs the switch until it is to end.
///
/// # Safety
/// `info` is the start of day page. Called once.
pub unsafe fn run(
    machine: &'static Machine<'static, Native>,
    info: *const start_info,
    options: &Options,
) -> Shutdown {
    // SAFETY: the caller's promise.
    let (spare, store_page, store_event) = unsafe {
        let store = memory::mapped_at_start(info, Mfn((*info).store_mfn));
        (memory::spare(info), store, Port((*info).store_evtchn))
    };
    let spare = spare.unwrap_or_else(|error| panic!("no memory for frames: {error}"));
    let store_page = store_page.unwrap_or_else(|| panic!("this domain has no xenstore"));
    let heap_pages = spare.pages / HEAP_SHARE;
    // SAFETY: the first pages of what is spare; the rest is the pool's.
    let pool = unsafe {
        heap::extend(spare.memory, heap_pages * PAGE_SIZE);
        let frames = spare.memory.add(heap_pages * PAGE_SIZE);
        Pool::new(frames, spare.pages - heap_pages, |page| spare.frame(heap_pages + page))
    };
    log::info!("{} pieces of memory for frames, {} of them large", pool.total(), pool.large());
    // As many frames may be on their way through a port as there are, if there is room for all ports.
    let room = (heap_pages * PAGE_SIZE / (4 * options.ports * size_of::<switch_model::Slot>()))
        .min(pool.total() as usize)
        .max(2);
    let room = 1 << room.ilog2();
    let mut fabric = Fabric::new(pool, Fdb::new(options.age_ns), options.ports, room, options.seed);
    for (port, (egress, ingress)) in options.settings.iter().enumerate() {
        for (direction, spec) in [(Direction::Egress, egress), (Direction::Ingress, ingress)] {
            if let Err(error) = fabric.configure(0, port, direction, *spec) {
                log::error!("port {port}: {error}");
            }
        }
    }
    let lending = lending(spare.window + (WINDOW_PAGES as usize - GRANT_FRAMES) * PAGE_SIZE);
    let lending = lending.unwrap_or_else(|error| panic!("no grant table: {error}"));
    // SAFETY: the rest of the window is nobody else's, and its page tables exist.
    let exchange = unsafe { Exchange::new(machine, fabric, spare.window, lending) };
    let daemon = Daemon { machine, port: store_event, deadline_ns: None };
    // SAFETY: mapped since the start, for ever; the daemon accesses it atomically.
    let store = unsafe { Client::new(store_page, daemon) };
    let upcalls = match traps::install_upcall() {
        Ok(()) => Some(memory::upcalls(machine.vcpu)),
        Err(error) => {
            log::warn!("no upcalls: {error}");
            None
        }
    };
    // SAFETY: installed just now.
    let mut switch =
        unsafe { Switch::new(machine, exchange, store, store_event, upcalls, heap::free) };
    match switch.run() {
        End::Asked(why) => why,
        end => panic!("{end}"),
    }
}
