// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that builds and runs the lab: what it must have, and how it gets it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::exec::{Cmd, Step};

/// What is needed, how to see that it is there, and the Debian package that brings it.
const NEEDS: &[(Need, &str)] = &[
    (Need::Program("qemu-system-x86_64"), "qemu-system-x86"),
    (Need::Program("gcc"), "gcc"),
    (Need::Program("make"), "make"),
    (Need::Program("flex"), "flex"),
    (Need::Program("bison"), "bison"),
    (Need::Program("bc"), "bc"),
    (Need::Program("python3"), "python3"),
    (Need::Program("patch"), "patch"),
    (Need::Program("tar"), "tar"),
    // Kernels are packed with one or the other, modules with the first.
    (Need::Program("xz"), "xz-utils"),
    (Need::Program("zstd"), "zstd"),
    (Need::Program("objdump"), "binutils"),
    (Need::Program("dpkg-deb"), "dpkg"),
    // apt-get source refuses to work without it, even when it only downloads.
    (Need::Program("dpkg-source"), "dpkg-dev"),
    (Need::Program("apt-get"), "apt"),
    (Need::File("/usr/include/libelf.h"), "libelf-dev"),
    // The C library's headers and archive, for Xen's build tools and for a static `tdf`.
    (Need::File("/usr/include/stdlib.h"), "libc6-dev"),
];

#[derive(Clone, Copy)]
enum Need {
    Program(&'static str),
    File(&'static str),
}

impl Need {
    fn found(self) -> Option<PathBuf> {
        match self {
            Self::Program(name) => which(name),
            Self::File(path) => Path::new(path).exists().then(|| path.into()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Program(name) | Self::File(name) => name,
        }
    }
}

/// The program `name` on PATH, or where Debian keeps administrators' programs.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Packages that are missing.
fn missing() -> Vec<&'static str> {
    NEEDS.iter().filter(|(need, _)| need.found().is_none()).map(|(_, package)| *package).collect()
}

/// The one command that installs `packages`.
fn install_command(packages: &[&str]) -> String {
    format!(
        "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends {}'",
        packages.join(" ")
    )
}

/// `cargo xtask doctor`: what is there, what is missing, and the command that installs it.
///
/// # Errors
/// Something is missing.
pub fn doctor() -> Result<()> {
    for (need, package) in NEEDS {
        match need.found() {
            Some(path) => println!("ok       {}", path.display()),
            None => println!("MISSING  {} (package {package})", need.name()),
        }
    }
    match missing().as_slice() {
        [] => {
            println!("Everything that the lab needs is installed.");
            Ok(())
        }
        packages => bail!("install what is missing with\n  {}", install_command(packages)),
    }
}

/// Installs what is missing when we are root; otherwise says how.
///
/// # Errors
/// Something is missing and could not be installed.
pub fn ensure() -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the lab needs packages that are missing; run\n  {}", install_command(&packages));
    }
    eprintln!("As root: installing {}", packages.join(" "));
    let mut step = Step::begin("install", "system packages")?;
    let apt = || Cmd::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    step.run(&apt().arg("update"))?;
    step.run(&apt().args(["install", "-y", "--no-install-recommends"]).args(&packages))?;
    match missing().as_slice() {
        [] => step.done("installed"),
        rest => bail!("still missing after the installation: {}", rest.join(" ")),
    }
    Ok(())
}
