// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab's Linux: a dom0 with the stock toolstack, and the initramfs of a probing Linux guest.
//!
//! Both are initramfs images made of unpacked Debian packages and a script. Files that every lab of
//! a base shares are one archive, built once; what changes with our sources (`tdf`, the guest
//! kernel, scenarios) is a second one behind it. Linux unpacks them as one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Base};
use crate::archive::{Archive, Entry};
use crate::exec::{Cmd, Step};
use crate::stamp::{Inputs, Stamp};
use crate::{bzimage, paths};

/// Programs of the toolstack that dom0 runs, from the versioned folder of `xen-utils`.
const XEN_PROGRAMS: &[&str] = &["xl", "xenstored", "xenconsoled", "xen-init-dom0"];

/// Programs of `xenstore-utils` that `tdf` and the scripts use.
const XENSTORE_TOOLS: &[&str] =
    &["xenstore-read", "xenstore-write", "xenstore-ls", "xenstore-rm", "xenstore-exists"];

/// A program that reads and sets what can be changed of Xen while it runs.
const XENHYPFS: &str = "usr/sbin/xenhypfs";

/// A program that xl starts by its whole path.
const SAVE_HELPER: &str = "libxl-save-helper";

/// Kernel modules that dom0 and the Linux guest load, in this order.
const MODULES: &[&str] = &["xen-evtchn", "xen-privcmd", "xenfs", "xen-gntdev", "xen-gntalloc"];
/// Those that it loads besides when the scenario has links.
const NET_MODULES: &[&str] = &["llc", "stp", "bridge", "xen-netback"];

const DOM0_INIT: &str = include_str!("dom0-init.sh");
/// What dom0 can run instead of a scenario: each script's name, and its text …
pub const SCRIPTS: &[(&str, &str)] = &[
    ("commands", include_str!("commands.sh")),
    ("hostile", include_str!("hostile.sh")),
    ("instructions", include_str!("instructions.sh")),
    ("life", include_str!("life.sh")),
    ("plug", include_str!("plug.sh")),
    ("ports", include_str!("ports.sh")),
    ("wall", include_str!("wall.sh")),
];
/// … and what some of them share.
const SCRIPT_COMMON: (&str, &str) = ("common", include_str!("common.sh"));
const PROBE_INIT: &str = include_str!("probe-init.sh");
const NET_INIT: &str = include_str!("net-init.sh");
/// Connects a domain's interface to a bridge of dom0.
const VIF_BRIDGE: &str = include_str!("vif-bridge.sh");

/// The initramfs of a Linux that is a host in a network.
pub const HOST: &str = "linux-host.cgz";

/// Where `tdf run` looks for kernels and scenarios.
const ASSETS: &str = "usr/share/xen-tdf";

/// The parts of a base from which labs are made.
pub struct Linux {
    /// Debian's kernel, unpacked.
    pub vmlinux: PathBuf,
    /// Its version.
    pub version: String,
    /// The archive that every dom0 of this base begins with.
    base: PathBuf,
    /// Files of the initramfs of the Linux that measures its clocks, but for those of our sources.
    guest: Vec<(String, Entry)>,
    /// The same of the Linux that is a host in a network.
    host: Vec<(String, Entry)>,
}

/// Fetches and unpacks the packages of `base`, and makes what all its labs share.
///
/// # Errors
/// A package cannot be had, or lacks what the lab needs of it.
pub fn linux(base: Base) -> Result<Linux> {
    let dir = paths::work().join(base.to_string());
    let root = dir.join("packages");
    let host_root = dir.join("packages-host");
    let archive = dir.join("dom0-base.cpio");
    let vmlinux = dir.join("vmlinux");
    let stamp = Stamp::new(dir.join("packages.stamp"));
    let inputs =
        Inputs::new().text(include_str!("dom0.rs")).text(include_str!("bzimage.rs")).hash();
    if !(stamp.is(&inputs)
        && archive.is_file()
        && vmlinux.is_file()
        && root.is_dir()
        && host_root.is_dir())
    {
        stamp.clear();
        let mut step = Step::begin(&format!("{base}-dom0"), "dom0 packages")?;
        let apt = Apt::open(base)?;
        let mut names: Vec<String> =
            ["busybox-static", "tcpdump", "xen-utils-common", "xenstore-utils"]
                .iter()
                .map(|&n| n.to_owned())
                .collect();
        names.push(dependency(&apt, &mut step, "xen-system-amd64", "xen-utils-")?);
        names.push(dependency(&apt, &mut step, "linux-image-amd64", "linux-image-")?);
        let files = apt.with_libraries(&mut step, &names)?;
        unpack(&mut step, &files, &root)?;
        let host_files = apt.with_libraries(&mut step, &["iperf3".to_owned()])?;
        unpack(&mut step, &host_files, &host_root)?;
        base_archive(&root)?.write(&archive)?;
        bzimage::unpack(&mut step, &kernel(&root)?.1, &vmlinux)?;
        stamp.set(&inputs)?;
        step.done(&format!("{} packages unpacked", files.len() + host_files.len()));
    }
    let (version, _) = kernel(&root)?;
    let shell = ("bin/busybox".to_owned(), Entry::read(&busybox(&root)?)?);
    let mut guest = vec![shell.clone()];
    guest.extend(modules(&root, "modules", &["xen-privcmd", "msr"])?);
    let mut host = Archive::default();
    host.add(shell.0, shell.1);
    libraries(&host_root, &mut host)?;
    host.add("usr/bin/iperf3", Entry::read(&host_root.join("usr/bin/iperf3"))?);
    let mut host: Vec<_> = host.into_entries().collect();
    host.extend(modules(&root, "modules", &["xen-netfront"])?);
    Ok(Linux { vmlinux, version, base: archive, guest, host })
}

/// Unpacks packages into `root`, which holds nothing else afterwards.
fn unpack(step: &mut Step, files: &[PathBuf], root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).context("cannot remove the old packages")?;
    }
    for file in files {
        step.run(&Cmd::new("dpkg-deb").arg("-x").arg(file).arg(root))?;
    }
    Ok(())
}

/// The package beginning with `prefix` that the meta package `meta` stands for.
fn dependency(apt: &Apt, step: &mut Step, meta: &str, prefix: &str) -> Result<String> {
    for package in apt.versions(step, meta)? {
        for name in package.depends_on(prefix) {
            // The newest meta package may name a package that cannot be had yet, or no more.
            if name != "xen-utils-common" && apt.binary(step, name).is_ok() {
                return Ok(name.to_owned());
            }
        }
    }
    bail!("{meta} names no package {prefix}…  that can be fetched")
}

fn base_archive(root: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    let bin = xen_folder(root)?.join("bin");
    for program in XEN_PROGRAMS {
        archive.add(format!("usr/sbin/{program}"), Entry::read(&bin.join(program))?);
    }
    let folder = bin.strip_prefix(root).context("xl is elsewhere")?;
    let helper = folder.join(SAVE_HELPER).to_string_lossy().into_owned();
    archive.add(helper, Entry::read(&bin.join(SAVE_HELPER))?);
    archive.add(XENHYPFS, Entry::read(&root.join(XENHYPFS))?);
    for tool in XENSTORE_TOOLS {
        let tool = format!("usr/bin/{tool}");
        let path = root.join(&tool);
        // Names of one program: links, or copies of it.
        let path = fs::canonicalize(&path).with_context(|| format!("no {tool}"))?;
        archive.add(tool, Entry::read(&path)?);
    }
    libraries(root, &mut archive)?;
    archive.add("usr/bin/tcpdump", Entry::read(&root.join("usr/bin/tcpdump"))?);
    archive.add("bin/busybox", Entry::read(&busybox(root)?)?);
    for (folder, names) in [("modules", MODULES), ("modules/net", NET_MODULES)] {
        for (path, entry) in modules(root, folder, names)? {
            archive.add(path, entry);
        }
    }
    Ok(archive)
}

/// The shared libraries that the packages in `root` brought, and their loader.
fn libraries(root: &Path, archive: &mut Archive) -> Result<()> {
    for folder in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains(".so") && !path.is_dir() {
                archive.add(format!("{folder}/{name}"), Entry::read(&path)?);
            }
        }
    }
    // Releases with a merged /usr ship the loader there only; programs ask for it in /lib64.
    if !archive.has("lib64/ld-linux-x86-64.so.2") {
        let to = "/usr/lib64/ld-linux-x86-64.so.2".to_owned();
        archive.add("lib64/ld-linux-x86-64.so.2", Entry::Link { to });
    }
    Ok(())
}

/// The folder of the toolstack's version, `/usr/lib/xen-4.17` or the like.
fn xen_folder(root: &Path) -> Result<PathBuf> {
    let lib = root.join("usr/lib");
    for entry in fs::read_dir(&lib).with_context(|| format!("cannot read {}", lib.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("xen-4") && path.join("bin/xl").exists() {
            return Ok(path);
        }
    }
    bail!("the packages brought no xl")
}

fn busybox(root: &Path) -> Result<PathBuf> {
    let places = [root.join("bin/busybox"), root.join("usr/bin/busybox")];
    places.into_iter().find(|p| p.is_file()).context("the packages brought no busybox")
}

fn kernel(root: &Path) -> Result<(String, PathBuf)> {
    let boot = root.join("boot");
    for entry in fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            return Ok((version.to_owned(), path));
        }
    }
    bail!("the packages brought no kernel")
}

/// The kernel modules `names`, uncompressed, in `folder`, with numbers before their names for the order.
fn modules(root: &Path, folder: &str, names: &[&str]) -> Result<Vec<(String, Entry)>> {
    let mut todo = vec![root.join("lib/modules"), root.join("usr/lib/modules")];
    let mut found = BTreeMap::new();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else if let Some(file) = path.file_name().and_then(|n| n.to_str())
                && let Some((name, kind)) = file.split_once(".ko")
            {
                found.insert(name.replace('_', "-"), (path.clone(), kind.to_owned()));
            }
        }
    }
    let mut files = Vec::new();
    for (order, &name) in names.iter().enumerate() {
        // A module that is not there is built into that kernel.
        let Some((path, kind)) = found.get(name) else { continue };
        let content = match kind.as_str() {
            "" => fs::read(path)?,
            ".xz" => {
                let unxz = Cmd::new("xz").arg("-dc").arg(path);
                unxz.command().output().context("cannot start xz")?.stdout
            }
            other => bail!("{}: unknown compression {other}", path.display()),
        };
        files.push((format!("{folder}/{order}-{name}.ko"), Entry::File { mode: 0o644, content }));
    }
    Ok(files)
}

/// What changes from lab to lab.
pub struct Contents<'a> {
    /// The static `tdf`.
    pub tdf: &'a Path,
    /// The PV guest kernel.
    pub guest: &'a Path,
    /// A scenario from outside the repository.
    pub scenario: Option<&'a Path>,
    /// Domains of the scenario are linked, so that there are hosts.
    pub network: bool,
}

/// Makes the initramfs of the lab's dom0; returns it.
///
/// # Errors
/// A file cannot be read or written.
pub fn initramfs(base: Base, linux: &Linux, contents: &Contents<'_>) -> Result<PathBuf> {
    let dir = paths::work().join(base.to_string());
    let tdf = Entry::program(
        fs::read(contents.tdf).with_context(|| format!("no {}", contents.tdf.display()))?,
    );
    let guest = |name: &str, files: &[(String, Entry)], init: &str| -> Result<PathBuf> {
        let mut archive = Archive::default();
        for (path, entry) in files {
            archive.add(path, entry.clone());
        }
        archive.add("init", Entry::program(init.into()));
        archive.add("bin/tdf", tdf.clone());
        // What Linux starts when the toolstack asks it to end.
        for program in ["reboot", "poweroff"] {
            let text = format!("#!/bin/busybox sh\nexec /bin/busybox {program} -f\n");
            archive.add(format!("sbin/{program}"), Entry::program(text.into()));
        }
        let file = dir.join(name);
        archive.write(&file)?;
        Ok(file)
    };
    let probe = guest("linux-probe.cpio", &linux.guest, PROBE_INIT)?;
    let host = match contents.network {
        true => Some(guest("linux-host.cpio", &linux.host, NET_INIT)?),
        false => None,
    };
    let mut archive = Archive::default();
    archive.add("init", Entry::program(DOM0_INIT.into()));
    archive.add("usr/bin/tdf", tdf.clone());
    archive.add(format!("{ASSETS}/guest"), Entry::read(contents.guest)?);
    // By the name that `tdf run` asks for; libxl takes it unpacked, too.
    archive.add(format!("{ASSETS}/vmlinuz"), Entry::read(&linux.vmlinux)?);
    archive.add(format!("{ASSETS}/linux-probe.cgz"), Entry::read(&probe)?);
    for (name, text) in SCRIPTS.iter().chain([&SCRIPT_COMMON]) {
        archive.add(format!("{ASSETS}/{name}.sh"), Entry::program((*text).into()));
    }
    if let Some(host) = host {
        archive.add(format!("{ASSETS}/{HOST}"), Entry::read(&host)?);
        archive.add("etc/xen/scripts/vif-bridge", Entry::program(VIF_BRIDGE.into()));
    }
    // Without it xl says at each call that it is missing.
    archive.add("etc/xen/xl.conf", Entry::File { mode: 0o644, content: Vec::new() });
    archive.add("etc/xen/guest.cfg", Entry::read(&paths::root().join("guest/guest.cfg"))?);
    let scenarios = paths::root().join("tdf-tool/scenarios");
    let own = fs::read_dir(&scenarios)
        .with_context(|| format!("cannot read {}", scenarios.display()))?
        .map(|e| Ok(e?.path()))
        .collect::<Result<Vec<_>>>()?;
    for path in own.iter().map(PathBuf::as_path).chain(contents.scenario) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.add(format!("{ASSETS}/scenarios/{name}"), Entry::read(path)?);
    }
    let ours = dir.join("dom0-ours.cpio");
    archive.write(&ours)?;
    let whole = dir.join("dom0.cpio");
    let mut bytes = Vec::new();
    for part in [&linux.base, &ours] {
        File::open(part)?.read_to_end(&mut bytes)?;
        // Each archive begins at a multiple of four bytes.
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    crate::exec::write_atomic(&whole, bytes)?;
    Ok(whole)
}
