// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine that plays the lab's hardware.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::exec::{Cmd, Step, tail};
use crate::paths;

/// Names of what is booted, in the machine's folder, in which QEMU runs. QEMU hands a file's path on
/// to what it boots: a run would depend on the folder in which the project lies, if only by the
/// instructions that skip the path.
const XEN: &str = "xen";
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";

/// Names of what is written, in the same folder.
const CONSOLE: &str = "console.log";
const RESULTS: &str = "results.log";

/// How the machine's instructions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// Emulated, time counted in instructions: the run is a function of its inputs
    Deterministic,
    /// Emulated on two processors, in this machine's time
    Tcg,
    /// By this machine's processor
    Kvm,
}

impl Accel {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deterministic => "deterministic",
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// One boot.
pub struct Machine<'a> {
    /// The hypervisor.
    pub xen: &'a Path,
    /// Its command line.
    pub xen_args: String,
    /// The initial domain's kernel.
    pub kernel: &'a Path,
    /// The kernel's command line.
    pub kernel_args: &'a str,
    /// The initial domain's initramfs.
    pub initramfs: Option<&'a Path>,
    /// How it runs.
    pub accel: Accel,
    /// MiB of memory.
    pub memory_mib: u32,
    /// Whether the processor has virtualization, for guests that are not PV.
    pub svm: bool,
    /// Whether the processors say that their TSCs are invariant and agree.
    pub invariant_tsc: bool,
    /// Seed of everything that is random in the machine.
    pub seed: u64,
    /// Longest time that the run may take.
    pub timeout: Duration,
    /// Folder in which QEMU runs: links to what it boots, and the two serial ports' files.
    pub dir: PathBuf,
}

/// What came out of a machine that switched itself off.
pub struct Output {
    /// Everything that was written to the first serial port: Xen's and dom0's log.
    pub console: Vec<u8>,
    /// Everything that was written to the second one.
    pub results: Vec<u8>,
    /// The console's file.
    pub console_file: PathBuf,
}

impl Machine<'_> {
    /// Gives a file that is booted the name that the machine knows it by.
    fn link(&self, name: &str, file: &Path) -> Result<()> {
        let link = self.dir.join(name);
        let fail = || format!("cannot link {} to {}", paths::shown(&link), paths::shown(file));
        fs::create_dir_all(&self.dir).with_context(fail)?;
        match fs::remove_file(&link) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(fail),
            _ => {
                let file = std::path::absolute(file).with_context(fail)?;
                symlink(file, &link).with_context(fail)
            }
        }
    }

    fn command(&self) -> Result<Cmd> {
        // QEMU splits its module list at commas; a doubled one stands for itself.
        let mut modules = format!("{KERNEL} {}", self.kernel_args.replace(',', ",,"));
        self.link(XEN, self.xen)?;
        self.link(KERNEL, self.kernel)?;
        if let Some(initramfs) = self.initramfs {
            self.link(INITRAMFS, initramfs)?;
            modules.push_str(&format!(",{INITRAMFS}"));
        }
        let mut cmd = Cmd::new("qemu-system-x86_64")
            .dir(&self.dir)
            .args([
                "-m",
                &self.memory_mib.to_string(),
                "-no-reboot",
                "-nic",
                "none",
                "-vga",
                "none",
            ])
            .args(["-kernel", XEN, "-append", &self.xen_args, "-initrd", &modules]);
        // -smap: with it QEMU's iret from ring 3 to ring 3 faults, and a PV Linux dies early.
        // -rdrand, -rdseed: they would let the host's randomness in. -rdtscp: an SVM guest trips over
        // QEMU's intercept of it.
        let svm = if self.svm { "-rdtscp" } else { "-svm" };
        // With more address bits QEMU's AMD processors have a hole below 1 TiB, up to which a PV Linux
        // then looks at each page, for a third of its boot.
        let cpu = format!("max,phys-bits=39,-smap,{svm}");
        // QEMU's TSCs have one rate and one origin, on which all its processors agree; it only does not say
        // so without being told to. (x-: QEMU 7.2 to 10 have it.)
        let tsc = if self.invariant_tsc { ",+invtsc,x-force-features=on" } else { "" };
        cmd = match self.accel {
            Accel::Deterministic => cmd
                .args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"])
                .args(["-seed", &self.seed.to_string()])
                .args(["-rtc", "clock=vm,base=2024-01-01T00:00:00"])
                .args(["-cpu", &format!("{cpu},-rdrand,-rdseed{tsc}")]),
            // Two processors that are really two, each a thread of its own.
            Accel::Tcg => cmd.args([
                "-accel",
                "tcg,thread=multi",
                "-smp",
                "2",
                "-cpu",
                &format!("{cpu}{tsc}"),
            ]),
            Accel::Kvm => cmd.args(["-accel", "kvm", "-cpu", "host"]),
        };
        Ok(cmd)
    }

    /// Boots it and waits until it switches itself off.
    ///
    /// # Errors
    /// QEMU could not be started or failed, or the time ran out; the machine is gone in any case.
    pub fn run(&self, step: &mut Step) -> Result<Output> {
        let (console_file, results_file) = (self.dir.join(CONSOLE), self.dir.join(RESULTS));
        let cmd = self.command()?.args(["-display", "none", "-monitor", "none"]).args([
            "-serial",
            &format!("file:{CONSOLE}"),
            "-serial",
            &format!("file:{RESULTS}"),
        ]);
        step.announce(&cmd)?;
        let log = fs::OpenOptions::new().append(true).open(step.log())?;
        let child = cmd
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let mut child = KillOnDrop(child);
        let began = Instant::now();
        let mut lines = 0;
        let status = loop {
            if let Some(status) = child.0.try_wait()? {
                break status;
            }
            if began.elapsed() > self.timeout {
                bail!(
                    "the lab did not end within {} s\n{}",
                    self.timeout.as_secs(),
                    tail(&console_file)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
            let now = fs::read(&console_file).unwrap_or_default();
            let now = now.iter().filter(|&&b| b == b'\n').count();
            (lines..now).for_each(|_| step.tick());
            lines = now.max(lines);
        };
        if !status.success() {
            bail!("QEMU failed ({status})\n{}", step.tail());
        }
        let read = |file: &Path| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            fs::File::open(file)
                .with_context(|| format!("no {}", paths::shown(file)))?
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        Ok(Output { console: read(&console_file)?, results: read(&results_file)?, console_file })
    }

    /// Boots it with the terminal as its console, until the user switches it off.
    ///
    /// # Errors
    /// QEMU could not be started or failed.
    pub fn interact(&self, step: &Step) -> Result<()> {
        let cmd = self.command()?.args(["-nographic", "-serial", "mon:stdio"]);
        step.announce(&cmd)?;
        let status = cmd.command().status().context("cannot start qemu-system-x86_64")?;
        match status.success() {
            true => Ok(()),
            false => bail!("QEMU failed ({status})"),
        }
    }
}

/// A child that does not outlive its owner.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only when the child is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_boots_does_not_know_where_it_lies() {
        let seen = |folder: &str| {
            let root = paths::work().join("qemu-test").join(folder);
            let machine = Machine {
                xen: &root.join("xen.gz"),
                xen_args: "a b".to_owned(),
                kernel: &root.join("vmlinuz"),
                kernel_args: "c=d,e",
                initramfs: Some(&root.join("dom0.cpio")),
                accel: Accel::Deterministic,
                memory_mib: 64,
                svm: false,
                invariant_tsc: false,
                seed: 1,
                timeout: Duration::ZERO,
                dir: root.clone(),
            };
            // Twice, as a lab that is run again.
            machine.command().unwrap();
            let shown = machine.command().unwrap().shown();
            let target = fs::read_link(root.join(XEN)).unwrap();
            (shown.split_once(" && ").unwrap().1.to_owned(), target == root.join("xen.gz"))
        };
        let short = seen("a");
        assert!(short.1);
        assert_eq!(short, seen("a/much/longer"));
    }
}
