// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times and lengths of the frames of a capture file (classic pcap, either byte order, micro- or
//! nanoseconds).

/// Each frame's time since the first one, ns, and its length on the wire.
pub fn frames(bytes: &[u8]) -> Result<Vec<(u64, u32)>, &'static str> {
    let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let magic = word(0).ok_or("too short for a capture")?;
    let (big, unit) = match (u32::from_le_bytes(magic), u32::from_be_bytes(magic)) {
        (0xA1B2_C3D4, _) => (false, 1000),
        (0xA1B2_3C4D, _) => (false, 1),
        (_, 0xA1B2_C3D4) => (true, 1000),
        (_, 0xA1B2_3C4D) => (true, 1),
        _ => return Err("not a pcap file (pcapng must be converted first)"),
    };
    let number = |at| word(at).map(if big { u32::from_be_bytes } else { u32::from_le_bytes });
    let mut frames: Vec<(u64, u32)> = Vec::new();
    let mut at = 24;
    while let Some(seconds) = number(at) {
        let cut = || "the capture ends within a frame";
        let fraction = number(at + 4).ok_or_else(cut)?;
        let stored = number(at + 8).ok_or_else(cut)?;
        let len = number(at + 12).ok_or_else(cut)?;
        frames.push((u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * unit, len));
        at += 16 + stored as usize;
    }
    let first = frames.iter().map(|frame| frame.0).min().unwrap_or(0);
    frames.iter_mut().for_each(|frame| frame.0 -= first);
    frames.sort_by_key(|frame| frame.0);
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::frames;

    fn capture(magic: u32, big: bool, frames: &[(u32, u32, u32)]) -> Vec<u8> {
        let word = |w: u32| if big { w.to_be_bytes() } else { w.to_le_bytes() };
        let mut bytes = word(magic).to_vec();
        bytes.resize(24, 0);
        for &(seconds, fraction, len) in frames {
            // Three bytes of each frame were stored.
            for w in [seconds, fraction, 3, len] {
                bytes.extend(word(w));
            }
            bytes.extend([1, 2, 3]);
        }
        bytes
    }

    #[test]
    fn both_byte_orders_and_both_units() {
        let given = [(7, 5, 60), (7, 8, 1514), (8, 5, 64)];
        for (magic, unit) in [(0xA1B2_C3D4, 1000), (0xA1B2_3C4D, 1)] {
            for big in [false, true] {
                let expected = vec![(0, 60), (3 * unit, 1514), (1_000_000_000, 64)];
                assert_eq!(frames(&capture(magic, big, &given)), Ok(expected));
            }
        }
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        assert!(frames(b"").is_err() && frames(b"not a capture").is_err());
        let mut cut = capture(0xA1B2_C3D4, false, &[(1, 2, 3)]);
        cut.truncate(30);
        assert!(frames(&cut).is_err());
        assert_eq!(frames(&capture(0xA1B2_C3D4, true, &[])), Ok(vec![]));
    }
}
