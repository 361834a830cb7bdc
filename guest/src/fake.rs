// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fake Xen as the self-tests see it.

use tdf_xen::abi::Vcpu;
use tdf_xen::fake::FakeXen;
use tdf_xen::hypercall::XenError;

use crate::machine::{Cpu, Crew, Machine};

/// A test's Xen: a fake one, or one around it that does more.
pub trait Around {
    /// The fake one, whose processor it is.
    fn inner(&self) -> &FakeXen;
}

impl Around for FakeXen {
    fn inner(&self) -> &FakeXen {
        self
    }
}

impl<T: Around> Cpu for T {
    fn rdtsc(&self) -> u64 {
        self.inner().rdtsc()
    }

    fn rdmsr_tsc(&self) -> u64 {
        self.inner().rdmsr_tsc()
    }

    fn cpuid_time(&self, subleaf: u32) -> [u32; 4] {
        self.inner().cpuid_time(subleaf)
    }

    fn tsc_is_emulated(&self) -> bool {
        self.inner().emulated_tsc()
    }
}

fn machine(xen: &FakeXen, vcpu: Vcpu) -> Result<Machine<'_, FakeXen>, XenError> {
    Machine::new(xen, vcpu, xen.time(vcpu), xen.wall(), xen.events())
}

/// The first vCPU of such a Xen.
pub fn first_machine(xen: &FakeXen) -> Machine<'_, FakeXen> {
    machine(xen, Vcpu(0)).expect("the fake binds every timer")
}

/// Its vCPUs; what they do together, they do one after another all the same.
impl Crew<FakeXen> for FakeXen {
    fn run(
        &self,
        _together: bool,
        job: &(dyn Fn(&Machine<'_, FakeXen>) + Sync),
    ) -> Result<(), XenError> {
        let mut vcpu = Some(Vcpu(0));
        while let Some(this) = vcpu {
            vcpu = self.switch_to(this);
            job(&machine(self, this)?);
        }
        self.switch_to(Vcpu(0));
        Ok(())
    }
}
