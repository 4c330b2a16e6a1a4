//! Where in a function a probe sits. The kernel emulates a few instructions and single-steps all others, which costs
//! twenty times as much; so the probe goes to the first emulated one, if it is reached from the entry in a straight line
//! with the arguments still in their places. A probe in the middle of an instruction would kill every process that
//! calls the function: sites are only ever found by decoding from the beginning of a function.
//!
//! The beginning of an exported function is not ours alone. Communication libraries and profilers put a jump over its
//! first 5 to 14 bytes and move whole instructions from there elsewhere; a breakpoint that the kernel puts into such a
//! jump, or that is moved with an instruction, kills the process. And the kernel puts it there again whenever the
//! protection of the code changes, whatever the process wrote meanwhile. So the exported function is followed to the
//! one it passes its arguments on to ([`passes_on`]), which nobody knows by name: there the probe is in nobody's way.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// How many bytes of a function are looked at.
pub(super) const WINDOW: usize = 80;
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

/// To where a function passes its arguments on, by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There.
    At(u64),
    /// Where the word at this address points.
    Through(u64),
}

/// The function that this one calls, or jumps to, in a straight line, with the arguments in registers as they came. What
/// comes on the stack it has passed on as well, or it is the same stack still: there is no other way to do its work.
#[cfg(target_arch = "x86_64")]
pub(super) fn passes_on(code: &[u8], address: u64) -> Option<Next> {
    let mut decoder = Decoder::with_ip(64, &code[..code.len().min(WINDOW)], address, DecoderOptions::NONE);
    let mut usage = InstructionInfoFactory::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::Call
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                return Some(Next::At(instruction.near_branch_target()));
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall
                if instruction.op0_kind() == OpKind::Memory && instruction.is_ip_rel_memory_operand() =>
            {
                return Some(Next::Through(instruction.ip_rel_memory_address()));
            }
            // The branch that is taken leads to an error.
            FlowControl::Next | FlowControl::ConditionalBranch
                if !disturbs(&mut usage, &instruction, &ARGUMENTS) => {}
            _ => return None,
        }
    }
    None
}

/// Elsewhere nobody has looked at how drivers do it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn passes_on(_code: &[u8], _address: u64) -> Option<Next> {
    None
}

/// Which of some addresses are named in the code by something that is not a pointer in memory: branched to, called, or
/// taken, relative to where that stands. By bytes, not by instructions: what only looks like it counts as well.
pub(super) fn named_in(code: &[u8], address: u64, wanted: &[u64], mut tell: impl FnMut(u64)) {
    let (Some(least), Some(most)) = (wanted.iter().min(), wanted.iter().max()) else { return };
    // Tens of megabytes go through here, in debug builds too.
    let mut at = 1;
    while at + 5 <= code.len() {
        let (before, opcode) = (code[at - 1], code[at]);
        let relative = opcode == 0xe8
            || opcode == 0xe9
            || before == 0x0f && opcode & 0xf0 == 0x80
            || before == 0x8d && opcode & 0xc7 == 0x05;
        if relative {
            let distance = i32::from_le_bytes([code[at + 1], code[at + 2], code[at + 3], code[at + 4]]);
            let target = address.wrapping_add(at as u64 + 5).wrapping_add_signed(i64::from(distance));
            if *least <= target && target <= *most && wanted.contains(&target) {
                tell(target);
            }
        }
        at += 1;
    }
}

/// How long the instruction is that this code begins with.
#[cfg(target_arch = "x86_64")]
pub(super) fn length(code: &[u8]) -> u64 {
    Decoder::new(64, code, DecoderOptions::NONE).decode().len() as u64
}

/// All are as long.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn length(_code: &[u8]) -> u64 {
    4
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

/// The registers in which arguments come.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Whether it changes a register in which arguments come, or the stack pointer, by which the rest is found.
fn disturbs_arguments(usage: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    disturbs(usage, instruction, &ARGUMENTS) || disturbs(usage, instruction, &[Register::RSP])
}

/// Whether it changes one of these registers.
fn disturbs(usage: &mut InstructionInfoFactory, instruction: &Instruction, precious: &[Register]) -> bool {
    usage.info(instruction).used_registers().iter().any(|used| {
        !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
            && precious.contains(&used.register().full_register())
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
    fn exported_functions_are_followed_to_what_they_pass_their_arguments_on_to() {
        // Drivers up to 555: cmpl; je; jmp *disp32(%rip).
        let jump =
            b"\x81\x3d\x3c\xa4\x8a\x05\x00\xba\x1c\x32\x74\x06\xff\x25\x10\x20\x30\x00\xb8\x04\0\0\0\xc3";
        assert_eq!(passes_on(jump, AT), Some(Next::Through(AT + 18 + 0x30_2010)));
        // Driver 580: a frame; cmpl; je near; call *disp32(%rip).
        let call = b"\x55\x48\x89\xe5\x41\x54\x48\x83\xec\x08\x81\x3d\x3c\xa4\x8a\x05\x00\xba\x1c\x32\
            \x0f\x84\x96\x00\x00\x00\xff\x15\x58\x48\x8a\x05\x41\x89\xc4";
        assert_eq!(passes_on(call, AT), Some(Next::Through(AT + 32 + 0x58a_4858)));
        // The same with a direct jump.
        assert_eq!(passes_on(b"\x74\x05\xe9\x10\x00\x00\x00\xc3", AT), Some(Next::At(AT + 7 + 16)));
    }

    #[test]
    fn a_function_that_changes_its_arguments_first_is_not_followed() {
        // mov %rsi,%rdi; jmp *; and a return before any call.
        assert_eq!(passes_on(b"\x48\x89\xf7\xff\x25\x10\x20\x30\x00", AT), None);
        assert_eq!(passes_on(b"\x31\xc0\xc3\xff\x25\x10\x20\x30\x00", AT), None);
        assert_eq!(passes_on(b"\xff\xe0", AT), None, "jmp *%rax");
    }

    #[test]
    fn whatever_names_an_address_is_found() {
        let found = |code: &[u8]| {
            let mut found = Vec::new();
            named_in(code, AT, &[AT + 0x100, AT + 0x200], |target| found.push(target - AT));
            found
        };
        assert_eq!(found(b"\x90\xe8\xfa\x00\x00\x00"), [0x100], "call");
        assert_eq!(found(b"\x90\x90\xe9\xf9\x01\x00\x00"), [0x200], "jmp");
        assert_eq!(found(b"\x0f\x84\xfa\x00\x00\x00"), [0x100], "je");
        assert_eq!(found(b"\x48\x8d\x05\xf9\x00\x00\x00"), [0x100], "lea");
        assert_eq!(found(b"\x48\x8d\x05\xfa\x00\x00\x00"), [0; 0]);
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
