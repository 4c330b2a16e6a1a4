//! Kernels: functions of modules, launches of them, and what a launch carries.

use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use cudarc::driver::sys::{CUfunction, CUresult};

use super::builtin::Builtin;
use crate::call::Outcome;
use crate::context::Context;
use crate::device::MAX_SHARED;
use crate::flight::Touch;
use crate::handles::{Registry, handle_of};
use crate::parameters::{Arguments, Extra};
use crate::ptx::Parameter;
use crate::timeline::Timeline;

/// Functions of loaded modules.
pub(crate) static FUNCTIONS: Registry<Function> = Registry::new();

/// An entry of a module.
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// Where its parameters lie.
    pub(crate) parameters: Vec<Parameter>,
    /// What it does; `None` for a name that the simulator does not know.
    pub(crate) builtin: Option<Builtin>,
    /// Where its module was loaded.
    pub(crate) context: Arc<Context>,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
    pub(crate) dynamic_shared: AtomicI32,
}

impl Function {
    /// The handle.
    pub(crate) fn handle(self: &Arc<Function>) -> CUfunction {
        handle_of(self)
    }

    /// The bytes of its parameter buffer.
    pub(crate) fn parameter_bytes(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.offset + last.size)
    }
}

/// The dimensions of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
}

impl Shape {
    /// Whether a device would take it.
    pub(crate) fn check(&self) -> Outcome {
        let [x, y, z] = self.grid;
        let threads = self.block.iter().map(|count| u64::from(*count)).product::<u64>();
        let grid = (1..=0x7fff_ffff).contains(&x) && (1..=65535).contains(&y) && (1..=65535).contains(&z);
        if grid && (1..=1024).contains(&threads) && self.block[2] <= 64 && self.shared <= MAX_SHARED {
            Ok(())
        } else {
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        }
    }
}

/// A launch, with its parameters as they were at the call.
#[derive(Clone)]
pub(crate) struct Launch {
    /// What is launched.
    pub(crate) function: Arc<Function>,
    /// The parameter buffer.
    pub(crate) parameters: Vec<u8>,
}

impl Launch {
    /// Checks a launch as the driver does and copies its parameters, which came with the function.
    pub(crate) fn new(
        function: &Arc<Function>,
        shape: Shape,
        parameters: Arguments,
        extra: Extra,
    ) -> Outcome<Launch> {
        shape.check()?;
        let bytes = function.parameter_bytes();
        let mut buffer = vec![0; bytes];
        if !extra.is_null() {
            if !parameters.is_null() {
                return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
            }
            let given = extra.buffer()?;
            buffer.copy_from_slice(given.get(..bytes).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?);
        } else if bytes > 0 {
            for (index, &Parameter { offset, size }) in function.parameters.iter().enumerate() {
                buffer[offset..][..size].copy_from_slice(parameters.get(index, size)?);
            }
        }
        Ok(Launch { function: Arc::clone(function), parameters: buffer })
    }

    /// Parameter `index` as a number; 0 where there is none.
    pub(crate) fn number(&self, index: usize) -> u64 {
        let Some(parameter) = self.function.parameters.get(index) else { return 0 };
        let mut bytes = [0; 8];
        let size = parameter.size.min(8);
        bytes[..size].copy_from_slice(&self.parameters[parameter.offset..][..size]);
        u64::from_le_bytes(bytes)
    }

    /// The memory it may touch.
    pub(crate) fn touches(&self) -> Vec<Touch> {
        self.function.builtin.map_or_else(Vec::new, |builtin| builtin.touches(self))
    }

    /// Runs it.
    pub(crate) fn execute(&self, timeline: &mut Timeline<'_>) -> Outcome {
        // A launch of a name without a builtin was refused.
        self.function.builtin.map_or(Ok(()), |builtin| builtin.run(self, timeline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_the_shapes_that_it_has_room_for() {
        let fits = |grid, block, shared| Shape { grid, block, shared }.check().is_ok();
        assert!(fits([0x7fff_ffff, 65535, 65535], [1024, 1, 1], MAX_SHARED));
        assert!(fits([1; 3], [16, 1, 64], 0));
        for (grid, block, shared) in [
            ([0, 1, 1], [1; 3], 0),
            ([1, 65536, 1], [1; 3], 0),
            ([1; 3], [1024, 2, 1], 0),
            ([1; 3], [0, 1, 1], 0),
            ([1; 3], [1, 1, 65], 0),
            ([1; 3], [1; 3], MAX_SHARED + 1),
        ] {
            assert!(!fits(grid, block, shared), "{grid:?} {block:?} {shared}");
        }
    }
}
