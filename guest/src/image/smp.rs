// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other vCPUs: each is started once, and sleeps until it is given something to do.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use tdf_guest::machine::{Crew, Machine};
use tdf_xen::abi::{
    FLAT_KERNEL_CS, FLAT_KERNEL_SS, Mfn, PAGE_SIZE, Port, VGCF_IN_KERNEL, Vcpu, start_info,
    vcpu_guest_context,
};
use tdf_xen::hypercall::{Xen, XenError};
use x86_64::registers::control::Cr0Flags;

use super::memory;
use super::traps;
use super::xen::Native;

/// Bytes of each one's stack.
const STACK_SIZE: usize = 32 * 1024;
/// Most vCPUs that are used: the heap has room for their stacks.
const VCPUS_MAX: u32 = 4;

/// What a vCPU is to do.
type Job<'a> = &'a (dyn Fn(&Machine<'_, Native>) + Sync);

// The address of its worker is in rdi.
global_asm!(
    ".pushsection .text.secondary, \"ax\", @progbits",
    ".globl SECONDARY_ENTRY",
    "SECONDARY_ENTRY:",
    "cld",
    "xor ebp, ebp",
    "call {secondary}",
    "ud2",
    ".popsection",
    secondary = sym secondary,
);

unsafe extern "C" {
    /// Where a vCPU starts.
    static SECONDARY_ENTRY: u8;
}

/// A vCPU's stack.
#[repr(align(16))]
struct Stack([u8; STACK_SIZE]);

/// What is between the first vCPU and another, for ever.
struct Worker {
    vcpu: Vcpu,
    /// Wakes this vCPU up.
    wake: Port,
    /// Wakes the first vCPU up.
    main: Port,
    job: Mutex<Option<Job<'static>>>,
    busy: AtomicBool,
}

impl Worker {
    /// Starts `vcpu`, which waits for jobs.
    fn start(vcpu: Vcpu, main: Port, page_tables: Mfn) -> Result<&'static Self, XenError> {
        let wake = Native.bind_ipi(vcpu)?;
        let (job, busy) = (Mutex::new(None), AtomicBool::new(false));
        let worker: &Self = Box::leak(Box::new(Self { vcpu, wake, main, job, busy }));
        // SAFETY: bytes, of which all-zero is a value.
        let stack = Box::leak(unsafe { Box::<Stack>::new_zeroed().assume_init() });
        let top = ptr::from_mut(stack).expose_provenance() + STACK_SIZE;
        // SAFETY: numbers, of which all-zero is a value.
        let mut context = unsafe { Box::<vcpu_guest_context>::new_zeroed().assume_init() };
        context.flags = VGCF_IN_KERNEL.into();
        let regs = &mut context.user_regs;
        regs.__bindgen_anon_7.rdi = ptr::from_ref(worker).expose_provenance() as u64;
        regs.__bindgen_anon_8.rip = (&raw const SECONDARY_ENTRY).addr() as u64;
        regs.__bindgen_anon_10.rsp = top as u64;
        regs.cs = FLAT_KERNEL_CS as u16;
        regs.ss = FLAT_KERNEL_SS as u16;
        context.kernel_ss = FLAT_KERNEL_SS.into();
        context.kernel_sp = top as u64;
        context.ctrlreg[0] = Cr0Flags::PAGING.bits();
        context.ctrlreg[3] = page_tables.0 * PAGE_SIZE as u64;
        // Here the table is indexed by vector.
        for trap in traps::table().into_iter().filter(|trap| trap.address != 0) {
            context.trap_ctxt[usize::from(trap.vector)] = trap;
        }
        memory::mask_upcalls(vcpu);
        // SAFETY: the entry expects its worker in rdi, and has a stack of its own.
        unsafe { Native.initialise_vcpu(vcpu, &context)? };
        Native.vcpu_up(vcpu)?;
        Ok(worker)
    }

    fn give(&self, job: Job<'static>) -> Result<(), XenError> {
        // In this order: the worker may be awake, and quick.
        self.busy.store(true, Ordering::Release);
        *self.job.lock() = Some(job);
        Native.notify(self.wake)
    }

    fn wait(&self, machine: &Machine<'_, Native>) -> Result<(), XenError> {
        while self.busy.load(Ordering::Acquire) {
            machine.listen(self.main)?;
        }
        Ok(())
    }
}

/// The first Rust code of another vCPU.
extern "C" fn secondary(worker: &'static Worker) -> ! {
    let run = || -> Result<(), XenError> {
        let machine = memory::machine(worker.vcpu)?;
        loop {
            let job = worker.job.lock().take();
            if let Some(job) = job {
                job(&machine);
                worker.busy.store(false, Ordering::Release);
                Native.notify(worker.main)?;
            } else {
                machine.listen(worker.wake)?;
            }
        }
    };
    match run() {
        Ok(()) => panic!("vCPU {} has nothing to do", worker.vcpu),
        Err(error) => panic!("vCPU {} cannot work: {error}", worker.vcpu),
    }
}

/// All vCPUs, used by the first.
pub struct Vcpus {
    machine: &'static Machine<'static, Native>,
    workers: Vec<&'static Worker>,
}

impl Vcpus {
    /// Starts all vCPUs of this domain, up to [`VCPUS_MAX`]. Called once, on the first.
    ///
    /// # Safety
    /// `info` is the start of day page.
    pub unsafe fn start(
        machine: &'static Machine<'static, Native>,
        info: *const start_info,
    ) -> Result<Self, XenError> {
        // SAFETY: the caller's promise.
        let page_tables = unsafe { memory::page_tables(info) };
        let main = Native.bind_ipi(machine.vcpu)?;
        let workers = (1..VCPUS_MAX)
            .map(Vcpu)
            .take_while(|vcpu| Native.vcpu_exists(*vcpu))
            .map(|vcpu| Worker::start(vcpu, main, page_tables))
            .collect::<Result<_, _>>()?;
        Ok(Self { machine, workers })
    }

    /// How many run.
    pub fn count(&self) -> usize {
        1 + self.workers.len()
    }
}

impl Crew<Native> for Vcpus {
    fn run(&self, together: bool, job: Job<'_>) -> Result<(), XenError> {
        // SAFETY: only the lifetime changes: this returns only when no worker is busy with the job any
        // more. A worker that cannot be reached ends the domain.
        let job = unsafe { mem::transmute::<Job<'_>, Job<'static>>(job) };
        let must = |result: Result<(), XenError>| {
            result.unwrap_or_else(|error| panic!("another vCPU cannot be reached: {error}"));
        };
        if !together {
            job(self.machine);
        }
        for worker in &self.workers {
            must(worker.give(job));
            if !together {
                must(worker.wait(self.machine));
            }
        }
        if together {
            job(self.machine);
        }
        for worker in &self.workers {
            must(worker.wait(self.machine));
        }
        Ok(())
    }
}
