//! What a script asks about memory. Addresses in answers become names; numbers that differ from run to run become what can
//! be compared of them: whether there is one. Free memory is compared roughly (`~`).

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use cudarc::driver::sys::{self, CUpointer_attribute};

use crate::script::Op;
use crate::vmm::place;
use crate::world::{Kind, MEMORIES, World, cu};

/// Attributes that can be asked for, and how their values are compared.
const ATTRIBUTES: &[(u32, How)] = &[
    (1, How::Context),
    (2, How::Word),
    (3, How::Address),
    (4, How::Address),
    (5, How::Nothing),
    (6, How::Byte),
    (7, How::Number),
    (8, How::Byte),
    (9, How::Word),
    // Legacy IPC: the library refuses it for memory of its own, and says so here.
    (10, How::Nothing),
    (11, How::Address),
    (12, How::Long),
    (13, How::Byte),
    (14, How::Long),
    (15, How::Byte),
    (16, How::Word),
    (17, How::Number),
    (18, How::Nothing),
    (19, How::Nothing),
    (20, How::Nothing),
    (21, How::Byte),
];

#[derive(Clone, Copy)]
enum How {
    Context,
    Address,
    /// Only whether it is zero.
    Number,
    Long,
    Word,
    Byte,
    /// Only that it was answered.
    Nothing,
}

const UNTOUCHED: u8 = 0xee;
/// Of the reservation around an address: where it begins, and how long it is. Known to differ of what was freed to a pool: where
/// the library has its chunks stays reserved without them.
const RESERVED: [u32; 2] = [11, 12];

impl World {
    pub(crate) fn run_questions(&mut self, op: &Op) -> Option<String> {
        let [first, second, third] = [0, 1, 2].map(|index| op.args.get(index).copied().unwrap_or(0));
        let address = |world: &World| {
            let memory = world.memories[first as usize % MEMORIES].as_ref()?;
            // Nor is anything asked about what happens to lie behind, or of a handle.
            (memory.kind != Kind::Array && !world.is_reused(memory) && second < memory.bytes)
                .then_some(memory.start + second)
        };
        let is_of_a_pool = |world: &World| {
            let memory = world.memories[first as usize % MEMORIES].as_ref();
            memory.is_some_and(|memory| memory.gone && memory.kind == Kind::Async)
        };
        Some(match op.verb() {
            "info" => {
                let (mut free, mut total) = (0, 0);
                // Known to differ: without an agent the driver answers, to whom what is out is free.
                if let Some(socket) = self.swaps {
                    swap(socket, b'i');
                }
                let code = cu!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
                format!("{code} ~{free} {total}")
            }
            "total" => {
                let mut total = 0;
                let code = cu!(cuDeviceTotalMem_v2(&raw mut total, first as i32));
                format!("{code} {total}")
            }
            "attribute" => {
                let (number, how) = ATTRIBUTES[third as usize % ATTRIBUTES.len()];
                if is_of_a_pool(self) && RESERVED.contains(&number) {
                    return None;
                }
                let mut room = [UNTOUCHED; 64];
                let at = address(self)?;
                let code = cu!(cuPointerGetAttribute(room.as_mut_ptr().cast(), numbered(number), at));
                let value = if code == 0 { self.value(&room, how) } else { String::new() };
                format!("{code} {number}: {value}")
            }
            "attributes" => {
                let hidden = |number: &u32| is_of_a_pool(self) && RESERVED.contains(number);
                let asked: Vec<_> = ATTRIBUTES
                    .iter()
                    .filter(|(number, _)| third >> number & 1 == 1 && !hidden(number))
                    .collect();
                let mut rooms = vec![[UNTOUCHED; 64]; asked.len()];
                let mut kinds: Vec<_> = asked.iter().map(|(number, _)| numbered(*number)).collect();
                let mut to: Vec<_> = rooms.iter_mut().map(|room| room.as_mut_ptr().cast()).collect();
                let (count, at) = (asked.len() as u32, address(self)?);
                let code = cu!(cuPointerGetAttributes(count, kinds.as_mut_ptr(), to.as_mut_ptr(), at));
                let mut said = code.to_string();
                if code == 0 {
                    for ((number, how), room) in asked.iter().zip(&rooms) {
                        said += &format!(" {number}: {}", self.value(room, *how));
                    }
                }
                said
            }
            "range" => {
                // Without a context the simulator refuses it, which is a guess.
                self.current()?;
                let (mut start, mut bytes) = (0, 0);
                let code = cu!(cuMemGetAddressRange_v2(&raw mut start, &raw mut bytes, address(self)?));
                if code == 0 { format!("{code} {} {bytes}", self.name(start)) } else { code.to_string() }
            }
            "access_of" => {
                let (mut flags, place) = (0, place(third));
                let code = cu!(cuMemGetAccess(&raw mut flags, &raw const place, address(self)?));
                format!("{code} {}", if code == 0 { flags } else { 0 })
            }
            "retain_of" => {
                let mut handle = 0;
                let at = crate::world::pointer(address(self)?);
                let code = cu!(cuMemRetainAllocationHandle(&raw mut handle, at));
                if code == 0 {
                    cu!(cuMemRelease(handle));
                }
                code.to_string()
            }
            "memops" => {
                let on = 1_i32;
                let at = address(self)?;
                let attribute = numbered(6);
                let code = cu!(cuPointerSetAttribute((&raw const on).cast(), attribute, at));
                code.to_string()
            }
            "swap" => {
                if let Some(socket) = self.swaps {
                    let order = [b's', b'o', b'i'][first as usize % 3];
                    swap(socket, order);
                }
                "-".to_owned()
            }
            _ => return None,
        })
    }

    fn value(&self, room: &[u8; 64], how: How) -> String {
        let bytes: [u8; 8] = std::array::from_fn(|index| room[index]);
        let long = u64::from_le_bytes(bytes);
        if room[0] == UNTOUCHED && room[1] == UNTOUCHED {
            return "untouched".to_owned();
        }
        match how {
            How::Context => self.context_name(long as sys::CUcontext),
            How::Address => self.name(long),
            How::Number => if long == 0 { "none" } else { "some" }.to_owned(),
            How::Long => long.to_string(),
            How::Word => (long as u32 as i32).to_string(),
            How::Byte => room[0].to_string(),
            How::Nothing => "some".to_owned(),
        }
    }
}

fn numbered(attribute: u32) -> CUpointer_attribute {
    assert!((1..=21).contains(&attribute));
    // SAFETY: the driver's numbers of attributes are those of the enum, without a gap up to 21.
    unsafe { std::mem::transmute::<u32, CUpointer_attribute>(attribute) }
}

/// Orders a swap of the library and waits until it was carried out, or was not possible.
fn swap(socket: i32, order: u8) {
    let mut answer = 0_u8;
    // SAFETY: one byte each way over a socket that the runner of the scripts made for this.
    unsafe {
        assert_eq!(
            libc::write(socket, (&raw const order).cast(), 1),
            1,
            "the library's debugging thread is gone"
        );
        assert_eq!(
            libc::read(socket, (&raw mut answer).cast(), 1),
            1,
            "the library's debugging thread is gone"
        );
    }
}
