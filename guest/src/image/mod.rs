// SPDX-License-Identifier: MIT OR Apache-2.0
//! From Xen's entry to the domain's end.

mod console;
mod entry;
mod heap;
mod memory;
mod smp;
mod switch;
mod traps;
mod xen;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;
use tdf_abi::Tdf;
use tdf_guest::clocks;
use tdf_guest::cmdline::{self, Task};
use tdf_guest::machine::{Cpu, Machine, Via};
use tdf_guest::switch::options::Options;
use tdf_guest::{armed, changes, cost, hostile, model, paths, probe};
use tdf_xen::abi::{SIF_INITDOMAIN, Vcpu, start_info};
use tdf_xen::hypercall::{Shutdown, Xen};

use xen::Native;

/// How often the demonstration shows the clocks, and the virtual time between.
const DEMO: (u32, i64) = (10, 1_000_000_000);

/// The machine, once it runs.
static MACHINE: Once<Global> = Once::new();

/// Whether the domain started as the initial one.
static INITIAL: AtomicBool = AtomicBool::new(false);

struct Global(Machine<'static, Native>);

// SAFETY: used by the first vCPU only, except for last words, after which nothing runs; and no code
// interrupts another.
unsafe impl Send for Global {}
// SAFETY: as above.
unsafe impl Sync for Global {}

/// The machine, `None` until [`start`] has got so far.
fn machine() -> Option<&'static Machine<'static, Native>> {
    MACHINE.get().map(|global| &global.0)
}

/// The first Rust code; `info` is what Xen passed in a register.
extern "C" fn start(info: *mut start_info) -> ! {
    traps::install();
    heap::init();
    // SAFETY: Xen maps the start of day page, and nobody else writes it.
    let (flags, mapped) = unsafe { ((*info).flags, memory::map_shared(info)) };
    let machine = mapped.and_then(|()| memory::machine(Vcpu(0)));
    let initial = flags & SIF_INITDOMAIN != 0;
    INITIAL.store(initial, Ordering::Relaxed);
    let machine = machine.unwrap_or_else(|error| panic!("cannot set up the machine: {error}"));
    let machine = &MACHINE.call_once(|| Global(machine)).0;
    // SAFETY: as above; the console belongs to this kernel alone.
    unsafe { console::init(info, initial) };
    let first_line_ns = machine.system_time_ns();
    banner(machine, info);

    // SAFETY: as above.
    let line = unsafe { memory::command_line(info) };
    let task = core::str::from_utf8(line)
        .map_err(|error| log::error!("the command line is not text: {error}"))
        .and_then(|line| cmdline::parse(line).map_err(|error| log::error!("{error}")));
    log::info!("boot_ns={}", machine.system_time_ns() - first_line_ns);
    if task != Ok(Task::Paths)
        && let Err(error) = machine.xen.stop_periodic_timer(machine.vcpu)
    {
        log::warn!("the periodic tick goes on: {error}");
    }
    match task {
        Ok(Task::Demo) => demo(machine),
        Ok(Task::Clocks(options)) => {
            log::info!("clocks: {options:?}");
            clocks::run(machine, options, &mut console::Raw);
        }
        Ok(Task::Paths) => {
            paths::run(machine, &vcpus(machine, info), &mut console::Raw);
        }
        Ok(Task::Changes(options)) => {
            log::info!("changes: {options:?}");
            changes::run(machine, &vcpus(machine, info), options, &mut console::Raw);
        }
        Ok(Task::Armed(options)) => {
            log::info!("armed: {options:?}");
            armed::run(machine, options, &mut console::Raw);
        }
        Ok(Task::Hostile(options)) => {
            log::info!("hostile: {options:?}");
            hostile::run(machine, &vcpus(machine, info), options, &mut console::Raw);
        }
        Ok(Task::WatchdogBite) => {
            paths::watchdog_bite(machine, &mut console::Raw, console::flush);
        }
        Ok(Task::Cost) => {
            cost::run(machine, &vcpus(machine, info), &mut console::Raw);
        }
        Ok(Task::Model) => {
            model::run(&mut console::Raw);
        }
        Ok(Task::Switch) => match Options::parse(core::str::from_utf8(line).unwrap_or_default()) {
            // SAFETY: as above.
            Ok(options) => end(unsafe { switch::run(machine, info, &options) }),
            Err(error) => log::error!("{error}"),
        },
        Err(()) => console::say(format_args!("Test result: {}", probe::Outcome::Error)),
    }
    console::flush();
    // A halted machine runs on for ever, and its QEMU with it; a rebooted one can be told to end.
    end(if initial { Shutdown::Reboot } else { Shutdown::Poweroff })
}

fn banner(machine: &Machine<'_, Native>, info: *const start_info) {
    log::info!("tdf-guest {}", env!("CARGO_PKG_VERSION"));
    match machine.xen.version() {
        Ok(version) => log::info!("Xen {version}"),
        Err(error) => log::warn!("the version of Xen is unknown: {error}"),
    }
    let (line, _) = machine.tsc();
    // SAFETY: Xen maps the start of day page.
    let pages = unsafe { (*info).nr_pages };
    log::info!(
        "{pages} pages, TSC {} at {} Hz",
        if machine.xen.tsc_is_emulated() { "emulated" } else { "native" },
        line.frequency_hz().unwrap_or(0)
    );
    match machine.xen.tdf_sample(machine.vcpu).map(|sample| Tdf::new(sample.num, sample.den)) {
        Ok(Ok(tdf)) => log::info!("TDF {tdf}"),
        Ok(Err(error)) => log::warn!("Xen reports an impossible TDF: {error}"),
        Err(error) => log::info!("TDF unknown: {error}"),
    }
}

/// Starts the other vCPUs.
fn vcpus(machine: &'static Machine<'static, Native>, info: *const start_info) -> smp::Vcpus {
    // SAFETY: Xen maps the start of day page.
    let vcpus = unsafe { smp::Vcpus::start(machine, info) }
        .unwrap_or_else(|error| panic!("cannot start the other vCPUs: {error}"));
    log::info!("{} vCPUs", vcpus.count());
    vcpus
}

/// Shows the clocks once a virtual second, for a user who looks at the console.
fn demo(machine: &Machine<'_, Native>) {
    let (times, every) = DEMO;
    let mut next = machine.system_time_ns();
    for _ in 0..times {
        let (system, wall) = (machine.system_time_ns(), machine.wall_clock_ns());
        log::info!("system_time={system} wall_clock={wall}");
        next += every;
        if let Err(error) = machine.sleep_until(next, Via::Singleshot) {
            return log::error!("cannot sleep: {error}");
        }
    }
}

/// Ends the domain.
fn end(why: Shutdown) -> ! {
    loop {
        // Returns only if Xen refuses, which leaves nothing better to do than to ask again.
        let _ = Native.shutdown(why);
    }
}

/// Prints why nothing can go on, and crashes the domain.
fn die(message: core::fmt::Arguments<'_>) -> ! {
    static DYING: AtomicBool = AtomicBool::new(false);
    // A second fault, while the first is printed: the console is what is broken.
    if !DYING.swap(true, Ordering::Relaxed) {
        console::last_words(message);
    }
    end(Shutdown::Crash)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(format_args!("{info}"))
}

/// Landing pads in the precompiled `alloc` name it; with `panic = "abort"` none is ever reached.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    die(format_args!("something tried to unwind"))
}
