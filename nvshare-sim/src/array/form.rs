//! What an array is: its extents, its elements, its flags; and which of that the driver takes.

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;
use crate::device;

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUDA_ARRAY3D_*`.
const LAYERED: u32 = 0x01;
/// See [`LAYERED`].
pub(crate) const SURFACE: u32 = 0x02;
const CUBEMAP: u32 = 0x04;
const GATHER: u32 = 0x08;
const DEPTH_TEXTURE: u32 = 0x10;
const COLOR_ATTACHMENT: u32 = 0x20;
const SPARSE: u32 = 0x40;
const DEFERRED_MAPPING: u32 = 0x80;
const VIDEO: u32 = 0x100;
/// The flags that this device takes: `SPARSE_CUDA_ARRAY_SUPPORTED` is 0.
const TAKEN: u32 =
    LAYERED | SURFACE | CUBEMAP | GATHER | DEPTH_TEXTURE | COLOR_ATTACHMENT | DEFERRED_MAPPING | VIDEO;

/// Formats that are not simulated: packed, planar and compressed ones.
const OTHERS: &[std::ops::RangeInclusive<u32>] = &[0x50..=0x50, 0x91..=0xb5, 0xc0..=0xc1, 0xc3..=0xcb];

/// `CU_AD_FORMAT_UNORM_INT8X4`.
const FOUR_BYTES: u32 = 0xc2;

/// Attributes that limit the extents of a kind of array: width, height and depth or layers.
type Limits = [u32; 3];
/// As textures: one, two and three dimensions, layers of one and of two, cubemaps and layers of them.
const TEXTURES: [Limits; 7] =
    [[21, 0, 0], [22, 23, 0], [24, 25, 26], [42, 0, 43], [27, 28, 29], [52, 52, 0], [53, 53, 54]];
/// As surfaces.
const SURFACES: [Limits; 7] =
    [[55, 0, 0], [56, 57, 0], [58, 59, 60], [61, 0, 62], [63, 64, 65], [66, 66, 0], [67, 67, 68]];
/// Three dimensions, another way.
const ALTERNATE: Limits = [47, 48, 49];
const GATHERED: Limits = [45, 46, 0];
/// With levels: one and two dimensions; the others are as without.
const LEVELS: [Limits; 2] = [[77, 0, 0], [73, 74, 0]];

/// `CUDA_ARRAY3D_DESCRIPTOR`, with a plain number where it has an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Form {
    /// Elements of a row.
    pub(crate) width: usize,
    /// Rows; 0 with one dimension.
    pub(crate) height: usize,
    /// Slices or layers; 0 with fewer dimensions.
    pub(crate) depth: usize,
    /// `CUarray_format`.
    pub(crate) format: u32,
    /// Components of an element.
    pub(crate) channels: u32,
    /// `CUDA_ARRAY3D_*`.
    pub(crate) flags: u32,
}

/// Bytes of a component; 0 for a number that is no format, an error for one that is not simulated.
pub(crate) fn component(format: u32) -> Outcome<u64> {
    match format {
        0x01 | 0x08 | FOUR_BYTES => Ok(1),
        0x02 | 0x09 | 0x10 => Ok(2),
        0x03 | 0x0a | 0x20 => Ok(4),
        _ if OTHERS.iter().any(|formats| formats.contains(&format)) => {
            Err(CUresult::CUDA_ERROR_NOT_SUPPORTED)
        }
        _ => Err(INVALID),
    }
}

impl Form {
    /// Bytes of an element.
    pub(crate) fn element(&self) -> u64 {
        component(self.format).unwrap_or(1) * u64::from(self.channels)
    }

    /// Bytes of a row, rows of a slice, slices.
    pub(crate) fn lengths(&self) -> [u64; 3] {
        let at_least_one = |length: usize| length.max(1) as u64;
        [self.width as u64 * self.element(), at_least_one(self.height), at_least_one(self.depth)]
    }

    /// All bytes. Extents that were checked do not overflow.
    pub(crate) fn bytes(&self) -> u64 {
        self.lengths().iter().product()
    }

    /// Whether its memory is mapped later, by the application.
    pub(crate) fn is_deferred(&self) -> bool {
        self.flags & DEFERRED_MAPPING != 0
    }

    /// All bytes as a device lays them out: in rows of tiles, of which a low array takes lower ones. This gives what an H200
    /// asks for arrays of many shapes.
    pub(crate) fn tiled_bytes(&self) -> u64 {
        const TILE: u64 = 64;
        const LOWEST: u64 = 8;
        const HIGHEST: u64 = 128;
        let [row, rows, slices] = self.lengths();
        let height = rows.next_power_of_two().clamp(LOWEST, HIGHEST);
        row.next_multiple_of(TILE) * rows.next_multiple_of(height) * slices
    }

    /// Whether the driver makes such an array; `levelled` if it is to have several levels.
    pub(crate) fn check(&self, levelled: bool) -> Outcome {
        component(self.format)?;
        if self.width == 0 || !matches!(self.channels, 1 | 2 | 4) || self.flags & !(TAKEN | SPARSE) != 0 {
            return Err(INVALID);
        }
        if self.flags & !TAKEN != 0 || (self.format == FOUR_BYTES && self.channels != 4) {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        let kind = self.kind()?;
        let gathered = self.flags & GATHER != 0;
        if gathered && kind != 1 {
            return Err(INVALID);
        }
        let textures = if gathered {
            GATHERED
        } else if levelled {
            LEVELS.get(kind).copied().unwrap_or(TEXTURES[kind])
        } else {
            TEXTURES[kind]
        };
        let fits = self.is_within(textures) || (kind == 2 && self.is_within(ALTERNATE));
        let as_surface = self.flags & SURFACE == 0 || self.is_within(SURFACES[kind]);
        if fits && as_surface { Ok(()) } else { Err(INVALID) }
    }

    /// Which of the kinds in [`TEXTURES`] it is.
    fn kind(&self) -> Outcome<usize> {
        let layered = self.flags & LAYERED != 0;
        let square = self.width == self.height;
        match (self.height, self.depth) {
            _ if self.flags & CUBEMAP != 0 => match (layered, self.depth) {
                (false, 6) if square => Ok(5),
                (true, layers) if square && layers > 0 && layers.is_multiple_of(6) => Ok(6),
                _ => Err(INVALID),
            },
            (0, 0) if !layered => Ok(0),
            (_, 0) if !layered => Ok(1),
            (0, _) if layered && self.depth > 0 => Ok(3),
            (0, _) | (_, 0) => Err(INVALID),
            _ if layered => Ok(4),
            _ => Ok(2),
        }
    }

    fn is_within(&self, limits: Limits) -> bool {
        // An attribute that is not there limits nothing: the kind has told that extent.
        let within = |(extent, attribute): (usize, u32)| {
            attribute == 0 || device::attribute(0, attribute).is_some_and(|most| extent <= most as usize)
        };
        [self.width, self.height, self.depth].into_iter().zip(limits).all(within)
    }

    /// How many levels there can be.
    pub(crate) fn most_levels(&self) -> u32 {
        let depth = if self.flags & LAYERED == 0 { self.depth } else { 0 };
        1 + self.width.max(self.height).max(depth).ilog2()
    }

    /// One of its levels.
    pub(crate) fn level(&self, level: u32) -> Form {
        let half = |length: usize| if length == 0 { 0 } else { (length >> level).max(1) };
        let layers = self.flags & (LAYERED | CUBEMAP) != 0;
        let depth = if layers { self.depth } else { half(self.depth) };
        Form { width: half(self.width), height: half(self.height), depth, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Form = Form { width: 16, height: 0, depth: 0, format: 0x20, channels: 1, flags: 0 };

    #[test]
    fn extents_and_flags_make_the_kind_of_an_array() {
        let kind = |height, depth, flags| Form { height, depth, flags, ..ONE }.kind().ok();
        assert_eq!([kind(0, 0, 0), kind(4, 0, 0), kind(4, 4, 0)], [Some(0), Some(1), Some(2)]);
        assert_eq!(
            [kind(0, 4, 1), kind(4, 4, 1), kind(0, 4, 0), kind(4, 0, 1)],
            [Some(3), Some(4), None, None]
        );
        assert_eq!(
            [kind(16, 6, 4), kind(16, 12, 5), kind(8, 6, 4), kind(16, 12, 4)],
            [Some(5), Some(6), None, None]
        );
    }

    #[test]
    fn what_is_no_array_is_refused_and_what_is_not_simulated_is_said_to_be() {
        let refused = |form: Form| form.check(false).err();
        assert_eq!(refused(ONE), None);
        assert_eq!(refused(Form { width: 0, ..ONE }), Some(INVALID));
        assert_eq!(refused(Form { channels: 3, ..ONE }), Some(INVALID));
        assert_eq!(refused(Form { format: 0x04, ..ONE }), Some(INVALID));
        assert_eq!(refused(Form { flags: 0x1000, ..ONE }), Some(INVALID));
        assert_eq!(refused(Form { width: 1 << 20, ..ONE }), Some(INVALID));
        assert_eq!(refused(Form { width: 1 << 17, ..ONE }), None);
        assert_eq!(refused(Form { width: 1 << 17, flags: SURFACE, ..ONE }), Some(INVALID));
        assert_eq!(refused(Form { format: 0x91, ..ONE }), Some(CUresult::CUDA_ERROR_NOT_SUPPORTED));
        assert_eq!(refused(Form { flags: SPARSE, ..ONE }), Some(CUresult::CUDA_ERROR_NOT_SUPPORTED));
    }

    #[test]
    fn an_array_takes_the_kib_of_tiles_that_an_h200_asks_for() {
        let kib = |width, height, depth, element: u32, flags| {
            let form = Form { width, height, depth, format: 0x01, channels: element, flags };
            form.tiled_bytes().next_multiple_of(64 << 10) >> 10
        };
        assert_eq!(
            [kib(4096, 2048, 0, 4, 0), kib(64, 64, 0, 4, 0), kib(1001, 333, 0, 4, 0)],
            [32768, 64, 1536]
        );
        assert_eq!([kib(1024, 1024, 0, 8, 2), kib(1024, 1024, 0, 16, 8)], [8192, 16384]);
        assert_eq!(
            [kib(65536, 0, 0, 4, 0), kib(4096, 0, 8, 4, 1)],
            [2048, 1024],
            "rows of tiles, though one row"
        );
        assert_eq!([kib(1024, 1024, 4, 4, 1), kib(256, 256, 64, 4, 0)], [16384, 16384]);
        assert_eq!([kib(512, 512, 6, 4, 4), kib(256, 256, 12, 4, 5)], [6144, 3072]);
        let whole = Form { width: 1024, height: 1024, channels: 4, format: 0x01, ..ONE };
        let levels: u64 = (0..5).map(|level| whole.level(level).tiled_bytes()).sum();
        assert_eq!(levels.next_multiple_of(64 << 10) >> 10, 5504);
    }

    #[test]
    fn each_level_is_half_of_the_one_before_and_layers_stay() {
        let form = Form { height: 5, ..ONE };
        assert_eq!(form.most_levels(), 5);
        assert_eq!((form.level(2).width, form.level(2).height, form.level(4).height), (4, 1, 1));
        assert_eq!(Form { depth: 12, flags: LAYERED, ..form }.level(3).depth, 12);
        assert_eq!(ONE.level(2).height, 0);
    }
}
