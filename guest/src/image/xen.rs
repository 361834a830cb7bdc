// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real hypercall and the real CPU.

use core::arch::asm;
use core::arch::x86_64::{_mm_lfence, _rdtsc};

use tdf_guest::machine::Cpu;
use tdf_xen::abi::{CPUID_TIME, CPUID_TIME_VTSC};
use tdf_xen::hypercall::Hypercall;

/// Bytes of one entry of the hypercall page.
const ENTRY_SIZE: usize = 32;
/// Xen's first CPUID leaf, for a PV guest.
const CPUID_BASE: u32 = 0x4000_0000;
/// The time stamp counter, as a model-specific register.
const MSR_TSC: u32 = 0x10;
/// "XenVMMXenVMM" in ebx, ecx, edx of it.
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];

/// This vCPU.
#[derive(Debug)]
pub struct Native;

impl Hypercall for Native {
    unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
        let result;
        // SAFETY: the caller vouches for the arguments. The page's entry keeps rcx and r11 on the
        // stack, Xen changes the argument registers, and any memory may change.
        unsafe {
            asm!(
                "lea rax, [rip + HYPERCALL_PAGE]",
                "add rax, {entry}",
                "call rax",
                entry = in(reg) number as usize * ENTRY_SIZE,
                inlateout("rdi") args[0] => _,
                inlateout("rsi") args[1] => _,
                inlateout("rdx") args[2] => _,
                inlateout("r10") args[3] => _,
                inlateout("r8") args[4] => _,
                out("rax") result,
            );
        }
        result
    }
}

/// CPUID as Xen wants a PV guest to see it: behind Xen's prefix for forced emulation.
fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx);
    // SAFETY: the prefix is an invalid instruction that Xen recognises; rbx is kept.
    unsafe {
        asm!(
            "mov {keep}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "xchg {keep}, rbx",
            keep = out(reg) ebx,
            inlateout("eax") leaf => eax,
            inlateout("ecx") subleaf => ecx,
            lateout("edx") edx,
        );
    }
    let ebx: u64 = ebx;
    [eax, ebx as u32, ecx, edx]
}

impl Cpu for Native {
    fn rdtsc(&self) -> u64 {
        // SAFETY: every x86-64 CPU has both; the fence keeps what was read before before.
        unsafe {
            _mm_lfence();
            _rdtsc()
        }
    }

    fn rdmsr_tsc(&self) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: Xen emulates the read for every PV kernel.
        unsafe {
            asm!("lfence", "rdmsr", in("ecx") MSR_TSC, out("eax") low, out("edx") high);
        }
        u64::from(high) << 32 | u64::from(low)
    }

    fn cpuid_time(&self, subleaf: u32) -> [u32; 4] {
        let [last, signature @ ..] = cpuid(CPUID_BASE, 0);
        if signature == SIGNATURE && last >= CPUID_BASE + CPUID_TIME {
            cpuid(CPUID_BASE + CPUID_TIME, subleaf)
        } else {
            [0; 4]
        }
    }

    fn tsc_is_emulated(&self) -> bool {
        self.cpuid_time(0)[0] & CPUID_TIME_VTSC != 0
    }
}
