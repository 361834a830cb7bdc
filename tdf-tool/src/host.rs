// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real dom0: processes, terminals, signals.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::dom0::{ConsoleEvent, ConsoleId, Dom0, ToolOutput};
use crate::privcmd::{OpenError, Privcmd};
use crate::xen::{Errno, Hypervisor, Op};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes SIGINT, SIGTERM and SIGHUP a request that [`Dom0::interrupted`] reports, so that whoever
/// makes domains can also unmake them.
pub fn catch_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: an all-zero sigaction is valid: no flags (so that waiting is cut short), no mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler only stores to an atomic, which is safe at any moment.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// The machine that `tdf` runs on.
#[derive(Debug)]
pub struct Host {
    privcmd: Privcmd,
    consoles: Vec<Option<File>>,
    folder: Option<PathBuf>,
    start: Instant,
}

impl Host {
    /// Opens the way to the hypervisor.
    ///
    /// # Errors
    /// This is not Xen, or not root.
    pub fn open() -> Result<Self, OpenError> {
        let privcmd = Privcmd::open()?;
        Ok(Self { privcmd, consoles: Vec::new(), folder: None, start: Instant::now() })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // What is left behind is small, harmless and replaced by the next run.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Hypervisor for Host {
    fn call(&mut self, op: Op<'_>) -> Result<u64, Errno> {
        self.privcmd.call(op)
    }
}

/// A file without a name, for a command's output: unlike a pipe it ends when the command does, even
/// if a daemon that the command started still holds it.
fn scratch() -> io::Result<File> {
    // SAFETY: the name is a C string, and the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"tdf".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new, open, and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn contents(mut file: File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes the terminal `console` raw: no echo into the guest, no change of what it wrote.
fn make_raw(console: &File) -> io::Result<()> {
    let fd = console.as_raw_fd();
    // SAFETY: termios is plain numbers, for which zero is valid; it is filled in below.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `fd` is open for as long as `console`; `settings` is valid for writing and reading.
    let result = unsafe {
        match libc::tcgetattr(fd, &raw mut settings) {
            0 => {
                libc::cfmakeraw(&raw mut settings);
                libc::tcsetattr(fd, libc::TCSANOW, &raw const settings)
            }
            error => error,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Dom0 for Host {
    fn tool(&mut self, program: &str, args: &[&str]) -> io::Result<ToolOutput> {
        let (out, err) = (scratch()?, scratch()?);
        // Its own process group: a Ctrl-C is for tdf, which then undoes what xl has finished. An xl
        // that dies half way would leave half a domain.
        let status = Command::new(program)
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(err.try_clone()?)
            .status()?;
        Ok(ToolOutput { ok: status.success(), out: contents(out)?, err: contents(err)? })
    }

    fn write_config(&mut self, folder: &str, name: &str, text: &str) -> io::Result<PathBuf> {
        let folder = match &self.folder {
            Some(folder) => folder,
            None => {
                let base = ["/run", "/tmp"].iter().map(Path::new).find(|base| base.is_dir());
                let base = base.ok_or_else(|| io::Error::other("there is no /run and no /tmp"))?;
                let path = base.join(format!("tdf-run-{folder}"));
                if path.symlink_metadata().is_ok() {
                    fs::remove_dir_all(&path)?;
                }
                DirBuilder::new().mode(0o700).create(&path)?;
                self.folder.insert(path)
            }
        };
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn open_console(&mut self, tty: &str) -> io::Result<ConsoleId> {
        let console = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(tty)?;
        make_raw(&console)?;
        self.consoles.push(Some(console));
        Ok(ConsoleId(self.consoles.len() - 1))
    }

    fn write_console(&mut self, console: ConsoleId, bytes: &[u8]) -> io::Result<()> {
        match self.consoles.get_mut(console.0) {
            Some(Some(console)) => console.write_all(bytes),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<Vec<ConsoleEvent>> {
        let mut ids = Vec::new();
        let mut polled = Vec::new();
        for (id, console) in self.consoles.iter().enumerate() {
            if let Some(console) = console {
                ids.push(id);
                let (fd, events) = (console.as_raw_fd(), libc::POLLIN);
                polled.push(libc::pollfd { fd, events, revents: 0 });
            }
        }
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(1 << 30) as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the array has the given length, and all its descriptors are open; the time is
        // valid for reading, and no mask of signals is given.
        let ready = unsafe {
            libc::ppoll(
                polled.as_mut_ptr(),
                polled.len() as libc::nfds_t,
                &raw const timeout,
                std::ptr::null(),
            )
        };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(Vec::new()),
                _ => Err(error),
            };
        }
        let mut events = Vec::new();
        for (id, poll) in ids.into_iter().zip(polled) {
            if poll.revents == 0 {
                continue;
            }
            let mut bytes = vec![0; 4096];
            let Some(console) = &mut self.consoles[id] else { continue };
            match console.read(&mut bytes) {
                Ok(0) => {
                    self.consoles[id] = None;
                    events.push(ConsoleEvent::Closed(ConsoleId(id)));
                }
                Ok(length) => {
                    bytes.truncate(length);
                    events.push(ConsoleEvent::Bytes(ConsoleId(id), bytes));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // EIO is how a terminal says that its other end is closed.
                Err(_) => {
                    self.consoles[id] = None;
                    events.push(ConsoleEvent::Closed(ConsoleId(id)));
                }
            }
        }
        Ok(events)
    }

    fn pause(&mut self, time: Duration) {
        let time = libc::timespec {
            tv_sec: time.as_secs().min(1 << 30) as libc::time_t,
            tv_nsec: time.subsec_nanos().into(),
        };
        // SAFETY: `time` is valid for reading; what a signal leaves of it is not asked for.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    }

    fn now(&mut self) -> Duration {
        self.start.elapsed()
    }

    fn interrupted(&mut self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }

    fn log(&mut self, line: &str) {
        // A log that cannot be written must not stop the run.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `Host` needs Xen; its terminals do not.
    #[test]
    fn a_terminal_becomes_raw_and_passes_bytes_unchanged() {
        // SAFETY: posix_openpt takes flags and gives a descriptor that nobody else owns.
        let master = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) };
        assert!(master >= 0, "{}", io::Error::last_os_error());
        // SAFETY: as above.
        let mut master = unsafe { File::from_raw_fd(master) };
        let mut number: libc::c_int = 0;
        let unlock: libc::c_int = 0;
        // SAFETY: both requests take a pointer to an int, which is valid for the call.
        unsafe {
            assert_eq!(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock), 0);
            assert_eq!(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number), 0);
        }
        let mut slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(format!("/dev/pts/{number}"))
            .unwrap();
        make_raw(&slave).unwrap();
        master.write_all(b"half\ra line\x03").unwrap();
        let mut bytes = [0; 64];
        let length = slave.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"half\ra line\x03");
    }

    #[test]
    fn a_command_ends_although_its_child_holds_its_output() {
        let out = scratch().unwrap();
        let start = Instant::now();
        let status = Command::new("sh")
            .args(["-c", "echo done; sleep 5 &"])
            .stdout(out.try_clone().unwrap())
            .status()
            .unwrap();
        assert!(status.success() && start.elapsed() < Duration::from_secs(4));
        assert_eq!(contents(out).unwrap(), "done\n");
    }
}
