//! Where in a function a probe sits. The kernel emulates a few instructions and single-steps all others, which costs
//! twenty times as much; so the probe goes to the first emulated one, if it is reached from the entry in a straight line
//! with the arguments still in their places. A probe in the middle of an instruction would kill every process that
//! calls the function: sites are only ever found by decoding from the symbol.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// How many bytes of a function are looked at.
pub(super) const WINDOW: usize = 48;
/// How many bytes of a function are searched for jumps back to the site.
pub(super) const REACH: usize = 4096;

/// A probe's place in its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes behind the symbol.
    pub offset: u64,
    /// The kernel emulates the instruction there: a hit costs one trap, not a single step as well.
    pub emulated: bool,
}

/// At the symbol itself: always right, often slow.
const ENTRY: Site = Site { offset: 0, emulated: false };

/// The place for a probe on the function whose code this is (its beginning at least); `None` if it does not decode.
/// `address` is where the code stands, for what it says relative to itself.
#[cfg(target_arch = "x86_64")]
pub fn choose(code: &[u8], address: u64) -> Option<Site> {
    let mut decoder = Decoder::with_ip(64, &code[..code.len().min(WINDOW)], address, DecoderOptions::NONE);
    let mut usage = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let offset = instruction.ip().wrapping_sub(address);
        if instruction.is_invalid() {
            // Beyond the first instruction: what is there may be data behind a jump.
            return (offset != 0).then_some(ENTRY);
        }
        if emulated(&instruction) {
            let reached_once = offset == 0 || !jumped_to(code, address, offset);
            return Some(if reached_once { Site { offset, emulated: true } } else { ENTRY });
        }
        if instruction.flow_control() != FlowControl::Next || disturbs_arguments(&mut usage, &instruction) {
            return Some(ENTRY);
        }
    }
    (!code.is_empty()).then_some(ENTRY)
}

/// On other machines every instruction that matters is of one size and probes cost the same everywhere.
#[cfg(not(target_arch = "x86_64"))]
pub fn choose(code: &[u8], _address: u64) -> Option<Site> {
    (code.len() >= 4).then_some(ENTRY)
}

/// What `arch/x86/kernel/uprobes.c` does without a single step (`push_setup_xol_ops`, `branch_setup_xol_ops`): pushes
/// of a register, near calls and jumps with an offset, and `nop` (the 5-byte one since Linux 6.18, else stepped).
fn emulated(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Push => instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr64(),
        Mnemonic::Nop => {
            instruction.code() == Code::Nopd && instruction.len() == 1
                || instruction.code() == Code::Nop_rm32 && instruction.len() == 5
        }
        _ => {
            let near = instruction.op_count() == 1 && instruction.op0_kind() == OpKind::NearBranch64;
            // An operand-size prefix makes it something else on AMD's processors: the kernel refuses to emulate that.
            near && !instruction.has_repne_prefix()
                && (instruction.is_jcc_short_or_near()
                    || instruction.is_jmp_short_or_near()
                    || instruction.is_call_near())
        }
    }
}

/// Whether it changes a register in which arguments come, or the stack pointer, by which the rest is found.
fn disturbs_arguments(usage: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    const PRECIOUS: [Register; 7] = [
        Register::RDI,
        Register::RSI,
        Register::RDX,
        Register::RCX,
        Register::R8,
        Register::R9,
        Register::RSP,
    ];
    usage.info(instruction).used_registers().iter().any(|used| {
        !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
            && PRECIOUS.contains(&used.register().full_register())
    })
}

/// Whether the function jumps to just behind its entry, up to the site: it would be hit more often than it is called.
fn jumped_to(code: &[u8], address: u64, site: u64) -> bool {
    let mut decoder = Decoder::with_ip(64, &code[..code.len().min(REACH)], address, DecoderOptions::NONE);
    decoder.iter().any(|instruction| {
        (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::NearBranch64)
            && instruction.flow_control() != FlowControl::Call
            && (1..=site).contains(&instruction.near_branch_target().wrapping_sub(address))
    })
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    const AT: u64 = 0x32_b900;

    #[expect(clippy::unnecessary_wraps, reason = "compared with an `Option`")]
    const fn at(offset: u64) -> Option<Site> {
        Some(Site { offset, emulated: true })
    }

    #[test]
    fn drivers_up_to_555_are_probed_at_the_jump_behind_their_first_comparison() {
        // cmpl $0x321cba00, disp32(%rip); je short; jmp *disp32(%rip)
        let short =
            b"\x81\x3d\x3c\xa4\x8a\x05\x00\xba\x1c\x32\x74\x06\xff\x25\x10\x20\x30\x00\xb8\x04\0\0\0\xc3";
        assert_eq!(choose(short, AT), at(10));
        // The same with a near jump.
        let near = b"\x81\x3d\x3c\xa4\x8a\x05\x00\xba\x1c\x32\x0f\x84\x96\x00\x00\x00\x55\x48\x89\xe5";
        assert_eq!(choose(near, AT), at(10));
    }

    #[test]
    fn driver_580_is_probed_at_its_first_push() {
        let code = b"\x55\x48\x89\xe5\x41\x54\x48\x83\xec\x08\x81\x3d\x3c\xa4\x8a\x05\x00\xba\x1c\x32\x0f\x84\x96\0\0\0";
        assert_eq!(choose(code, AT), at(0));
        let marked = [b"\xf3\x0f\x1e\xfa".as_slice(), code].concat();
        assert_eq!(choose(&marked, AT), at(4), "behind endbr64");
    }

    #[test]
    fn a_push_of_a_high_register_and_nops_are_emulated() {
        assert_eq!(choose(b"\x41\x57\x41\x56\xc3", AT), at(0));
        assert_eq!(choose(b"\xf3\x0f\x1e\xfa\x0f\x1f\x44\x00\x00\xc3", AT), at(4));
        assert_eq!(choose(b"\x90\xc3", AT), at(0));
    }

    #[test]
    fn a_site_behind_a_changed_argument_is_not_taken() {
        for code in [
            b"\x48\x89\xf7\x55\xc3".as_slice(), // mov %rsi,%rdi; push
            b"\x31\xd2\x55\xc3",                // xor %edx,%edx; push
            b"\x48\x83\xec\x18\x74\x02\xc3",    // sub $24,%rsp; je
            b"\xb1\x01\x55\xc3",                // mov $1,%cl; push
        ] {
            assert_eq!(choose(code, AT), Some(ENTRY), "{code:x?}");
        }
    }

    #[test]
    fn a_site_that_is_not_reached_in_a_straight_line_is_not_taken() {
        assert_eq!(choose(b"\xff\x25\x10\x20\x30\x00\x55\xc3", AT), Some(ENTRY), "jmp *; push");
        assert_eq!(choose(b"\xc3\x55", AT), Some(ENTRY), "ret; push");
    }

    #[test]
    fn a_site_that_the_function_jumps_back_to_is_not_taken() {
        // test %eax,%eax; je +0 (the site, at 2); dec %eax; jne back to the site
        assert_eq!(choose(b"\x85\xc0\x74\x00\xff\xc8\x75\xfa\xc3", AT), Some(ENTRY));
        // ... back to the entry is another call.
        assert_eq!(choose(b"\x85\xc0\x74\x00\xff\xc8\x75\xf8\xc3", AT), at(2));
    }

    #[test]
    fn an_address_at_the_end_of_all_addresses_is_one_like_any_other() {
        assert_eq!(choose(b"\x85\xc0\x74\x00\xff\xc8\x75\xfa\xc3", u64::MAX - 1), Some(ENTRY));
        assert_eq!(choose(b"\x85\xc0\x74\x00\xff\xc8\x75\xf8\xc3", u64::MAX - 1), at(2));
    }

    #[test]
    fn what_does_not_decode_gets_no_probe() {
        assert_eq!(choose(b"\x06\x07", AT), None);
        assert_eq!(choose(b"", AT), None);
    }

    #[test]
    fn a_function_without_a_cheap_place_is_probed_at_its_entry() {
        // mov %eax-free work only: lea, mov to scratch registers, ret.
        assert_eq!(choose(b"\x48\x8d\x05\x00\x00\x00\x00\xc3", AT), Some(ENTRY));
    }
}
