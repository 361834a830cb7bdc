// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PV guest kernel: its build, and the lint of its image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::{ET_EXEC, PT_DYNAMIC, PT_INTERP, PT_LOAD, SHN_UNDEF, SHT_REL, SHT_RELA};
use elf::endian::LittleEndian;
use elf::note::Note;

use crate::exec::{Cmd, Step};
use crate::paths;

/// The only target that the kernel is built for: the host's, made freestanding by its link script.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// No host code path of the standard target may survive: one address, no red zone (Xen pushes event
/// frames at the interrupted stack pointer), no unwinding.
const RUSTFLAGS: &str = "-Cpanic=abort -Crelocation-model=static -Ctarget-feature=+crt-static -Cno-redzone=yes -Cforce-frame-pointers=yes";

/// Largest image that is accepted, in bytes.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// Faults that are shown when the lint fails.
const FAULTS_SHOWN: usize = 10;

/// ELF notes that Xen's domain builder needs, by their names in `public/elfnote.h`.
const NOTES: &[(u64, &str)] = &[
    (1, "ENTRY"),
    (2, "HYPERCALL_PAGE"),
    (3, "VIRT_BASE"),
    (5, "XEN_VERSION"),
    (6, "GUEST_OS"),
    (8, "LOADER"),
];

/// A kernel image that was built and passed its lint.
pub struct Image {
    /// The ELF file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// The cargo that runs us, or the one on PATH.
pub fn cargo() -> Cmd {
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).dir(paths::root())
}

/// Builds and lints the kernel.
///
/// # Errors
/// The build or the lint failed.
pub fn build() -> Result<Image> {
    let mut step = Step::begin("guest", "guest kernel")?;
    let remap = format!("--remap-path-prefix={}=", paths::root().display());
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .unwrap_or_default();
    let remap_home = format!("--remap-path-prefix={home}=cargo");
    step.run(
        &cargo()
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                format!("{RUSTFLAGS} {remap} {remap_home}"),
            )
            .args([
                "build",
                "--locked",
                "-p",
                "tdf-guest",
                "--profile",
                "guest",
                "--target",
                TARGET,
            ]),
    )?;
    let path = paths::target().join(TARGET).join("guest/tdf-guest");
    let size =
        fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
    let objdump = Cmd::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(&path);
    step.announce(&objdump)?;
    let listing = objdump.command().output().context("cannot start objdump")?.stdout;
    let faults = lint(&path, &String::from_utf8_lossy(&listing))?;
    if !faults.is_empty() {
        let shown = &faults[..faults.len().min(FAULTS_SHOWN)];
        let more = faults.len() - shown.len();
        bail!("the guest image is not fit to boot ({more} more):\n  {}", shown.join("\n  "));
    }
    step.done(&format!("{} KiB, lint ok", size.div_ceil(1024)));
    Ok(Image { path, size })
}

/// What the lint found good, for `build-guest` to print.
pub const LINT: &str =
    "lint: ELF notes, no relocations, no undefined symbols, no red-zone operands, no host paths";

/// Everything that is wrong with the image, one sentence each.
fn lint(path: &Path, listing: &str) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = ElfBytes::<LittleEndian>::minimal_parse(&bytes)
        .with_context(|| format!("{} is no ELF file", path.display()))?;
    let mut faults = Vec::new();
    if file.ehdr.e_type != ET_EXEC {
        faults.push("it is not a static executable (ET_EXEC)".to_owned());
    }
    let segments = file.segments().context("it has no program headers")?;
    for segment in segments.iter() {
        if segment.p_type == PT_INTERP || segment.p_type == PT_DYNAMIC {
            faults.push("it wants a dynamic linker".to_owned());
        }
        if segment.p_type == PT_LOAD && segment.p_flags & 3 == 3 {
            faults
                .push(format!("the segment at {:#x} is writable and executable", segment.p_vaddr));
        }
    }
    let (headers, names) = file.section_headers_with_strtab()?;
    let (Some(headers), Some(names)) = (headers, names) else {
        bail!("{} has no section table", path.display());
    };
    let mut notes = Vec::new();
    for header in headers.iter() {
        let name = names.get(header.sh_name as usize).unwrap_or("?");
        if (header.sh_type == SHT_REL || header.sh_type == SHT_RELA) && header.sh_size > 0 {
            faults.push(format!("section {name} holds relocations"));
        }
        if name == ".note.Xen" {
            for note in file.section_data_as_notes(&header)? {
                if let Note::Unknown(note) = note {
                    notes.push(note.n_type);
                }
            }
        }
    }
    for (number, name) in NOTES {
        if !notes.contains(number) {
            faults.push(format!("the ELF note XEN_ELFNOTE_{name} is missing"));
        }
    }
    if let Some((symbols, names)) = file.symbol_table()? {
        for symbol in symbols.iter().skip(1) {
            if symbol.st_shndx == SHN_UNDEF {
                let name = names.get(symbol.st_name as usize).unwrap_or("?");
                faults.push(format!("the symbol {name} is undefined"));
            }
        }
    }
    faults.extend(red_zone(listing));
    let home = std::env::var("HOME").unwrap_or_default();
    for host in [paths::root().display().to_string(), home] {
        if host.len() > 1
            && bytes
                .windows(host.len() + 1)
                .any(|w| w.starts_with(host.as_bytes()) && w.ends_with(b"/"))
        {
            faults.push(format!("it contains the host's path {host}"));
        }
    }
    if bytes.len() as u64 > SIZE_LIMIT {
        faults.push(format!("it has {} bytes; {SIZE_LIMIT} are allowed", bytes.len()));
    }
    Ok(faults)
}

/// Operands below the stack pointer, in a disassembly. `push` and `call` do not show as such, and
/// indexed operands (`-8(%rsp,%rax,8)`) usually point above it.
fn red_zone(listing: &str) -> Vec<String> {
    let mut function = "?";
    let mut faults = Vec::new();
    let mut code = false;
    for line in listing.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|l| l.split_once(" <")) {
            function = name.1;
        }
        code |= line.starts_with("Disassembly of section");
        if line.contains("(%rsp)")
            && line.split([' ', ',', '\t']).any(|w| w.starts_with('-') && w.ends_with("(%rsp)"))
            && !line.contains("lea ")
        {
            faults.push(format!("{function} uses the red zone: {}", line.trim()));
        }
    }
    if !code {
        faults.push("objdump showed no code, so the red zone could not be checked".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Disassembly of section .text:\n0000000000100000 <f>:\n";

    #[test]
    fn an_operand_below_the_stack_pointer_is_found() {
        let with = |line: &str| red_zone(&format!("{HEAD}  100000:\t{line}\n")).len();
        assert_eq!(with("mov    %rax,-0x8(%rsp)"), 1);
        assert_eq!(with("movaps -0x18(%rsp),%xmm0"), 1);
        assert_eq!(with("mov    %rax,0x8(%rsp)"), 0);
        assert_eq!(with("lea    -0x80(%rsp),%rsp"), 0);
        assert_eq!(with("mov    -0x8(%rsp,%rax,8),%rcx"), 0);
    }

    #[test]
    fn an_empty_listing_is_no_clean_bill() {
        assert_eq!(red_zone("").len(), 1);
    }
}
