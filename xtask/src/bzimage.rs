// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packaged kernel without its compression. Whoever boots it would unpack it first (Xen for dom0,
//! and libxl for each domain), which takes as long on an emulated processor as all the rest of a boot.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::exec::{Cmd, Step};

// The header of a bzImage: The Linux/x86 Boot Protocol, "Details of Header Fields".
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: std::ops::Range<usize> = 0x202..0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const ELF: &[u8] = b"\x7fELF";

/// Unpacks the kernel in `bzimage` into `vmlinux`, an ELF file.
///
/// # Errors
/// It is no bzImage, it is compressed in a way that is not known here, or a file cannot be read or
/// written; then `vmlinux` is as it was, and nothing lies beside it.
pub fn unpack(step: &mut Step, bzimage: &Path, vmlinux: &Path) -> Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
    let payload =
        payload(&image).with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    let (program, suffix) = match payload {
        p if p.starts_with(XZ) => ("xz", "part.xz"),
        p if p.starts_with(ZSTD) => ("zstd", "part.zst"),
        _ => bail!("{}: its compression is neither xz nor zstd", bzimage.display()),
    };
    let packed = vmlinux.with_extension(suffix);
    let unpacked = vmlinux.with_extension("part");
    let mut try_to = || -> Result<()> {
        fs::write(&packed, payload)?;
        step.run(&Cmd::new(program).args(["-d", "-k", "-f"]).arg(&packed))?;
        let mut magic = [0; ELF.len()];
        File::open(&unpacked)?.read_exact(&mut magic)?;
        ensure!(magic == ELF, "it is no ELF file");
        Ok(fs::rename(&unpacked, vmlinux)?)
    };
    let result = try_to();
    for part in [packed, unpacked] {
        // It may never have come to be, or have its name by now.
        let _ = fs::remove_file(part);
    }
    result.with_context(|| format!("cannot unpack what {} holds", bzimage.display()))
}

/// The compressed kernel, without the word behind it that gives its size.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    if image.get(MAGIC)? != b"HdrS" {
        return None;
    }
    let setup = match image[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = (1 + setup) * SECTOR + word(PAYLOAD_OFFSET)?;
    let length = word(PAYLOAD_LENGTH)?.checked_sub(size_of::<u32>())?;
    image.get(begin..begin.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[MAGIC].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 8;
        image[PAYLOAD_LENGTH] = 10;
        image[2 * SECTOR + 8..][..6].copy_from_slice(XZ);
        assert_eq!(payload(&image), Some(XZ));
        // Neither a length beyond the file nor a file that ends in its header is a kernel.
        image[PAYLOAD_LENGTH + 1] = 0xff;
        assert_eq!(payload(&image), None);
        assert_eq!(payload(&image[..PAYLOAD_LENGTH]), None);
        assert_eq!(payload(b"MZ"), None);
    }
}
