// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions: the registers on the console, then a crash.
//!
//! No exception is expected, and none is survived: the entry never returns, so it may use the
//! interrupted stack and need not save the SSE registers.

use core::arch::global_asm;
use core::ptr;

use tdf_xen::abi::{FLAT_KERNEL_CS, trap_info};
use tdf_xen::hypercall::{Xen, XenError};

use super::memory;
use super::xen::Native;

/// Names of the vectors that Xen passes on; the others have none.
const NAMES: [&str; COUNT] = [
    "#DE", "#DB", "", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP",
    "#PF", "", "#MF", "#AC", "#MC", "#XM",
];

const COUNT: usize = 20;

// Xen pushes its frame below rcx and r11, and an error code for the vectors that have one.
global_asm!(
    ".macro trap_entry vector, error",
    "trap_\\vector:",
    "pop rcx",
    "pop r11",
    ".ifeq \\error",
    "push 0",
    ".endif",
    "push \\vector",
    "jmp trap_common",
    ".endm",
    ".pushsection .text.traps, \"ax\", @progbits",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 18, 19",
    "trap_entry \\n, 0",
    ".endr",
    ".irp n, 8, 10, 11, 12, 13, 14, 17",
    "trap_entry \\n, 1",
    ".endr",
    // An upcall: to have come is all that it is for. Xen has masked the next one.
    ".globl UPCALL_ENTRY",
    "UPCALL_ENTRY:",
    "pop rcx",
    "pop r11",
    // Xen shows a kernel the ring that it thinks it is in.
    "or byte ptr [rsp + 8], 3",
    "iretq",
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rdi, rsp",
    "and rsp, -16",
    "cld",
    "call {exception}",
    "ud2",
    ".popsection",
    ".pushsection .rodata.traps, \"a\", @progbits",
    ".balign 8",
    "TRAP_ENTRIES:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19",
    ".quad trap_\\n",
    ".endr",
    ".popsection",
    ".purgem trap_entry",
    exception = sym exception,
);

unsafe extern "C" {
    /// The entry of each vector.
    static TRAP_ENTRIES: [u64; COUNT];
    /// The entry for upcalls.
    static UPCALL_ENTRY: u8;
}

/// Tells Xen about the entry for upcalls, which nothing notices.
pub fn install_upcall() -> Result<(), XenError> {
    // SAFETY: it expects Xen's frame and restores what that holds; there is no red zone.
    unsafe { Native.register_upcall((&raw const UPCALL_ENTRY).addr() as u64) }
}

/// What the entry pushed, and Xen before it.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    /// The selector; bit 32 says that events were masked.
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The entries, and a last one that ends the table.
pub fn table() -> [trap_info; COUNT + 1] {
    let none = trap_info { vector: 0, flags: 0, cs: 0, address: 0 };
    let mut table = [none; COUNT + 1];
    let vectors = (0u8..).zip(NAMES).filter(|(_, name)| !name.is_empty());
    for (entry, (vector, _)) in table.iter_mut().zip(vectors) {
        // SAFETY: the assembly above defines COUNT entries.
        let address = unsafe { TRAP_ENTRIES[usize::from(vector)] };
        *entry = trap_info { vector, flags: 0, cs: FLAT_KERNEL_CS as u16, address };
    }
    table
}

/// Tells Xen about the entries of the first vCPU.
pub fn install() {
    // SAFETY: the entries are those of Xen's frame, and the last one in the table has address 0.
    if let Err(error) = unsafe { Native.set_trap_table(&table()) } {
        panic!("cannot install exception handlers: {error}");
    }
}

extern "C" fn exception(frame: &Frame) -> ! {
    let name = NAMES.get(frame.vector as usize).copied().unwrap_or("?");
    // SAFETY: in the shared info page, or the page of zeros that it replaces. Of the first vCPU: where
    // another has faulted, the instruction pointer must do.
    let cr2 = unsafe { ptr::read_volatile(&raw const (*memory::shared()).vcpu_info[0].arch.cr2) };
    super::die(format_args!("exception {name}, cr2 {cr2:#x}, {frame:#x?}"))
}
