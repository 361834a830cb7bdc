// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console, and the logger on it.
//!
//! A guest writes to the ring that it shares with dom0's console daemon. The initial domain has no
//! such daemon: it writes to Xen's console, and to COM2, which Xen leaves alone. A console whose
//! other side is gone or insane is given up, and costs nothing but the text.

use core::fmt::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};
use spin::{Mutex, MutexGuard};
use tdf_guest::console::RingConsole;
use tdf_xen::abi::{Mfn, Port, start_info};
use tdf_xen::hypercall::Xen;
use tdf_xen::ring::Ring;
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

use super::machine;
use super::memory;
use super::xen::Native;

/// I/O port of the second serial interface.
const COM2: u16 = 0x2f8;
/// I/O privilege level of a 64-bit PV kernel.
const KERNEL_IOPL: u32 = 1;

static CONSOLE: Mutex<Console> = Mutex::new(Console::new());

/// Where text goes.
enum Device {
    Nowhere,
    Ring(RingConsole),
    Xen { uart: Option<Uart16550<PioBackend>> },
}

/// A device, and the line that it is to get next.
struct Console {
    device: Device,
    line: [u8; 256],
    length: usize,
}

// SAFETY: used by the first vCPU, or behind its lock; the pointers in the ring are to a page that stays mapped.
unsafe impl Send for Console {}

impl Console {
    const fn new() -> Self {
        Self { device: Device::Nowhere, line: [0; 256], length: 0 }
    }

    fn push(&mut self, byte: u8) {
        if self.length == self.line.len() {
            self.send();
        }
        self.line[self.length] = byte;
        self.length += 1;
    }

    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            // Xen's own console turns a line feed into both by itself.
            if byte == b'\n' && matches!(self.device, Device::Ring(_)) {
                self.push(b'\r');
            }
            self.push(byte);
            if byte == b'\n' {
                self.send();
            }
        }
    }

    /// Gives what is in the line to the device.
    fn send(&mut self) {
        let line = &self.line[..core::mem::take(&mut self.length)];
        match &mut self.device {
            Device::Nowhere => {}
            Device::Ring(ring) => {
                if machine().is_none_or(|machine| ring.write(machine, line).is_err()) {
                    self.device = Device::Nowhere;
                }
            }
            Device::Xen { uart } => {
                // Not fatal: there may be COM2 still.
                let _ = Native.console_write(line);
                if let Some(uart) = uart {
                    for byte in line {
                        if *byte == b'\n' {
                            uart.send_bytes_exact(b"\r");
                        }
                        uart.send_bytes_exact(&[*byte]);
                    }
                }
            }
        }
    }

    /// Waits until the other side has read everything, or is gone.
    fn flush(&mut self) {
        self.send();
        if let Device::Ring(ring) = &self.device
            && machine().is_none_or(|machine| ring.flush(machine).is_err())
        {
            self.device = Device::Nowhere;
        }
    }
}

/// Finds the console and starts the logger.
///
/// # Safety
/// `info` is the start of day page. Called once.
pub unsafe fn init(info: *const start_info, initial: bool) {
    let device = if initial {
        Device::Xen { uart: serial() }
    } else {
        // SAFETY: the caller's promise; a domU has this side of the union.
        unsafe {
            let console = &(*info).console.domU;
            match memory::mapped_at_start(info, Mfn(console.mfn)) {
                Some(page) => {
                    let port = Port(console.evtchn);
                    Device::Ring(RingConsole::new(Ring::console_out(page), port))
                }
                None => Device::Nowhere,
            }
        }
    };
    lock().device = device;
    // Fails only if there is a logger already.
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// COM2, if there is one.
fn serial() -> Option<Uart16550<PioBackend>> {
    Native.set_iopl(KERNEL_IOPL).ok()?;
    // SAFETY: Xen gives the initial domain all serial interfaces but its own console's.
    let mut uart = unsafe { Uart16550::new_port(COM2) }.ok()?;
    let config = Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT };
    uart.init(config).ok().map(|()| uart)
}

/// The console. Held only while text is put into it, which asks for no other lock.
fn lock() -> MutexGuard<'static, Console> {
    CONSOLE.lock()
}

/// The console without a line's head, for what programs read.
pub struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        lock().text(text);
        Ok(())
    }
}

/// Prints one line.
pub fn say(line: fmt::Arguments<'_>) {
    // Writing to `Raw` cannot fail.
    let _ = writeln!(Raw, "{line}");
}

/// Waits until everything printed has been read, or nobody is there to read it.
pub fn flush() {
    lock().flush();
}

/// Prints a last line, even if the console was in use when everything ended.
pub fn last_words(line: fmt::Arguments<'_>) {
    if CONSOLE.is_locked() {
        // SAFETY: its holder is what ended: it never runs again. Its line may be half done.
        unsafe { CONSOLE.force_unlock() };
    }
    say(format_args!("\n{line}"));
    flush();
}

/// Puts virtual time and level before each line.
struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = machine().map_or(0, |machine| machine.system_time_ns());
        say(format_args!("[{now}] {:<5} {}", record.level(), record.args()));
    }

    fn flush(&self) {
        flush();
    }
}
