//! Invariant A8: a probe is put only where a process's own bytes are those of the file. The kernel does not
//! look: it takes the instruction from the file and writes the breakpoint into every process that maps it, also into one
//! that has put other code there, in the middle of whose instructions it then stands.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::find;
use super::library::{Library, Point};

/// What a breakpoint is: ours, another agent's, or a debugger's.
const BREAKPOINT: u8 = 0xcc;

/// The code around each of a library's places, as the file has it.
pub(super) struct Guard {
    expected: Vec<Piece>,
}

struct Piece {
    begin: u64,
    site: u64,
    bytes: Vec<u8>,
    behind: bool,
}

impl Guard {
    /// Reads it.
    pub(super) fn of(library: &Library) -> io::Result<Guard> {
        let piece = |point: &Point| {
            let Point { begin, end, offset: site, behind, .. } = *point;
            let mut bytes = vec![0; end.saturating_sub(begin) as usize];
            library.read_at(&mut bytes, begin)?;
            Ok(Piece { begin, site, bytes, behind })
        };
        let expected = library.points.iter().map(piece);
        Ok(Guard { expected: expected.collect::<io::Result<_>>()? })
    }

    /// What stands at a place in the file, as far as it was compared.
    pub(super) fn instruction(&self, site: u64) -> &[u8] {
        let piece = self.expected.iter().find(|piece| piece.site == site);
        piece.map_or(&[], |piece| &piece.bytes[(piece.site - piece.begin) as usize..])
    }

    /// The places (by their number in the library) at which a process has other code than `file`, which is device and
    /// inode as in its maps. None if it does not map it.
    pub(super) fn differing(&self, pid: u32, file: &str) -> io::Result<Vec<usize>> {
        let maps = fs::read(format!("/proc/{pid}/maps"))?;
        let maps = String::from_utf8_lossy(&maps);
        let memory = match File::open(format!("/proc/{pid}/mem")) {
            // Without CAP_SYS_PTRACE nobody can tell: then there is only a probe where nobody puts anything.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let own = self.expected.iter().enumerate().filter(|(_, piece)| !piece.behind);
                return Ok(own.map(|(index, _)| index).collect());
            }
            memory => memory?,
        };
        let mut differing = Vec::new();
        for text in maps.lines().filter(|line| line.contains(file)) {
            let Some(line) = find::line(text).filter(|line| line.file == file) else { continue };
            if !line.permissions.contains('x') {
                continue;
            }
            let Some((start, end)) = range(line.place) else { continue };
            let mapped = line.offset..line.offset.saturating_add(end.saturating_sub(start));
            for (index, piece) in self.expected.iter().enumerate() {
                if !mapped.contains(&piece.site) || differing.contains(&index) {
                    continue;
                }
                let mut found = vec![0; piece.bytes.len()];
                // Its beginning may be in the mapping before, if the protection was changed of a part.
                let begin = start.wrapping_add(piece.begin).wrapping_sub(line.offset);
                if memory.read_exact_at(&mut found, begin).is_err() {
                    differing.push(index);
                    continue;
                }
                let site = (piece.site - piece.begin) as usize;
                if found[site] == BREAKPOINT {
                    found[site] = piece.bytes[site];
                }
                if found != piece.bytes {
                    differing.push(index);
                }
            }
        }
        Ok(differing)
    }
}

fn range(place: &str) -> Option<(u64, u64)> {
    let (start, end) = place.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}
