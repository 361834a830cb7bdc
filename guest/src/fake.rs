// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fake Xen as the self-tests see it.

use tdf_xen::abi::Vcpu;
use tdf_xen::fake::FakeXen;
use tdf_xen::hypercall::XenError;

use crate::machine::{Cpu, Crew, Machine};

impl Cpu for FakeXen {
    fn rdtsc(&self) -> u64 {
        FakeXen::rdtsc(self)
    }

    fn rdmsr_tsc(&self) -> u64 {
        FakeXen::rdmsr_tsc(self)
    }

    fn cpuid_time(&self, subleaf: u32) -> [u32; 4] {
        FakeXen::cpuid_time(self, subleaf)
    }

    fn tsc_is_emulated(&self) -> bool {
        self.emulated_tsc()
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
