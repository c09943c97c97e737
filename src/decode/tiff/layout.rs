//! The arrangement of a TIFF's pixels in strips or tiles, and the meaning of their samples.
//!
//! - The supported combinations are those of Pillow's table `OPEN_INFO`, and a few more whose meaning
//!   is unambiguous in the specification: 16-bit gray with alpha, gray with an extra sample without a
//!   meaning, and planar 16-bit samples without compression.

use super::directory::Directory;
use super::tag;

/// Limit of the samples per pixel.
const MAX_SAMPLES: u64 = 6;

/// Values of the tag `Compression`.
pub(super) const UNCOMPRESSED: u64 = 1;
pub(super) const OLD_JPEG: u64 = 6;
pub(super) const JPEG: u64 = 7;

/// The meaning of the samples of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Color {
    Gray {
        white_is_zero: bool,
    },
    GrayAlpha,
    Palette,
    PaletteAlpha,
    Rgb,
    /// Only inside JPEG, whose decoder converts it to RGB.
    YCbCr,
    Rgba,
    /// Colours are multiplied by alpha (associated alpha).
    PremultipliedRgba,
    Cmyk,
}

impl Color {
    /// Samples that the conversion to RGB reads.
    pub(super) fn samples(self) -> usize {
        match self {
            Self::Gray { .. } | Self::Palette => 1,
            Self::GrayAlpha | Self::PaletteAlpha => 2,
            Self::Rgb | Self::YCbCr => 3,
            Self::Rgba | Self::PremultipliedRgba | Self::Cmyk => 4,
        }
    }
}

/// The part of the image that one strip or tile covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Index of the strip or tile within its plane.
    index: usize,
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

#[derive(Debug)]
pub(super) struct Layout {
    /// Pixels of the image.
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) compression: u64,
    pub(super) color: Color,
    pub(super) bits: usize,
    pub(super) big_endian: bool,
    /// Interleaved samples of a pixel; 1 in a planar image.
    pub(super) interleaved_samples: usize,
    /// Planes in the file, and planes that are read; 1 in a chunky image.
    planes: usize,
    pub(super) planes_read: usize,
    pub(super) tiled: bool,
    /// Pixels of a strip or tile, including those outside the image.
    pub(super) segment_width: usize,
    pub(super) segment_height: usize,
    /// Strips or tiles of a plane, horizontally and vertically.
    pub(super) across: usize,
    pub(super) down: usize,
}

impl Layout {
    /// Read the layout of an image whose sides are not zero.
    pub(super) fn read(directory: &Directory, (width, height): (u32, u32)) -> Result<Self, String> {
        let (width, height) = (width as usize, height as usize);
        let number = |tag, default| Ok::<_, String>(directory.number(tag)?.unwrap_or(default));
        let compression = number(tag::COMPRESSION, UNCOMPRESSED)?;
        if directory.is_cut && compression != UNCOMPRESSED {
            // a missing entry may affect decompression
            return Err("the directory is cut short".to_owned());
        }
        let photometric = number(tag::PHOTOMETRIC, 0)?;
        let planar = match number(tag::PLANAR_CONFIGURATION, 1)? {
            2 => true,
            1 => false,
            // libtiff, which Pillow uses for compressed pixels, rejects the file
            other if compression != UNCOMPRESSED => {
                return Err(format!("planar configuration {other} is not supported"));
            }
            _ => false,
        };
        let samples = number(tag::SAMPLES_PER_PIXEL, 1)?;
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(format!("{samples} samples a pixel are not supported"));
        }
        let samples = samples as usize;
        let bits = bits(directory, samples)?;
        let mut color = color(directory, photometric, samples, bits)?;
        if color == Color::Rgba && !directory.has(tag::EXTRA_SAMPLES) && planar && compression != UNCOMPRESSED
        {
            // libtiff treats such a sample as unspecified, and Pillow divides by it in planar images only
            color = Color::PremultipliedRgba;
        }
        if color == (Color::Gray { white_is_zero: true }) && bits == 16 && directory.big_endian {
            return Err("16-bit gray of which 0 is white is not supported in this byte order".to_owned());
        }
        if color == Color::YCbCr && (!matches!(compression, JPEG | OLD_JPEG) || planar) {
            return Err("YCbCr is supported inside JPEG only".to_owned());
        }
        if planar && bits < 8 && samples > 1 {
            return Err(format!("planes of {bits} bits are not supported"));
        }

        let tiled = !directory.has(tag::STRIP_OFFSETS);
        let side = |tag, name: &str| {
            let side = directory.number(tag)?.ok_or_else(|| format!("{name} is missing"))?;
            match usize::try_from(side) {
                Ok(side @ 1..=0xffff_ffff) => Ok(side),
                _ => Err(format!("{name} is {side}")),
            }
        };
        let (segment_width, segment_height) = if !tiled {
            match number(tag::ROWS_PER_STRIP, height as u64)? {
                0 => return Err("strips have no rows".to_owned()),
                rows => (width, usize::try_from(rows).unwrap_or(height).min(height)),
            }
        } else if directory.has(tag::TILE_OFFSETS) {
            (side(tag::TILE_WIDTH, "the width of tiles")?, side(tag::TILE_LENGTH, "the height of tiles")?)
        } else {
            return Err("it has neither strips nor tiles".to_owned());
        };
        Ok(Self {
            width,
            height,
            compression,
            color,
            bits,
            big_endian: directory.big_endian,
            interleaved_samples: if planar { 1 } else { samples },
            planes: if planar { samples } else { 1 },
            planes_read: if planar { color.samples() } else { 1 },
            tiled,
            segment_width,
            segment_height,
            across: width.div_ceil(segment_width),
            down: height.div_ceil(segment_height),
        })
    }

    /// Strips or tiles in the file.
    pub(super) fn segments(&self) -> usize {
        self.across * self.down * self.planes
    }

    /// Whether a single strip or tile is exactly as large as the image.
    pub(super) fn one_covers_the_image(&self) -> bool {
        self.planes == 1 && (self.segment_width, self.segment_height) == (self.width, self.height)
    }

    /// Bytes of a row of `pixels` pixels of one plane.
    pub(super) fn row_bytes(&self, pixels: usize) -> usize {
        (pixels * self.interleaved_samples * self.bits).div_ceil(8)
    }

    /// Bytes of a row of a strip or tile.
    pub(super) fn segment_row_bytes(&self) -> usize {
        self.row_bytes(self.segment_width)
    }

    /// Bytes that one plane of a strip or tile takes.
    pub(super) fn plane_bytes(&self) -> usize {
        self.segment_row_bytes() * self.segment_height
    }

    /// Bytes that all planes of a strip or tile take.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.plane_bytes() * self.planes_read
    }

    /// The parts of the image that the strips or tiles of one plane cover, in the order of their tables.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        let (across, down) = (self.across, self.down);
        (0..across * down).map(move |index| {
            let left = index % across * self.segment_width;
            let top = index / across * self.segment_height;
            Part {
                index,
                left,
                top,
                width: self.segment_width.min(self.width - left),
                height: self.segment_height.min(self.height - top),
            }
        })
    }

    /// Index, in the tables of offsets and byte counts, of the strip or tile that covers `part` in `plane`.
    pub(super) fn segment_index(&self, part: Part, plane: usize) -> usize {
        plane * self.across * self.down + part.index
    }
}

/// Bits of each sample, which must be the same for all of them.
fn bits(directory: &Directory, samples: usize) -> Result<usize, String> {
    let Some(stated) = directory.values(tag::BITS_PER_SAMPLE)? else { return Ok(1) };
    let first = stated.get(0).unwrap_or(1);
    // a single value applies to all samples, and excess values are ignored
    let unlike = stated.iter().take(samples).find(|bits| *bits != first);
    if stated.len() != 1 && (stated.len() < samples || unlike.is_some()) {
        return Err("samples of different numbers of bits are not supported".to_owned());
    }
    match first {
        1 | 2 | 4 | 8 | 16 => Ok(first as usize),
        bits => Err(format!("samples of {bits} bits are not supported")),
    }
}

fn color(directory: &Directory, photometric: u64, samples: usize, bits: usize) -> Result<Color, String> {
    const WHITE_IS_ZERO: u64 = 0;
    const BLACK_IS_ZERO: u64 = 1;
    const RGB: u64 = 2;
    const PALETTE: u64 = 3;
    const CMYK: u64 = 5;
    const YCBCR: u64 = 6;
    const UNSIGNED: u64 = 1;
    const SIGNED: u64 = 2;
    let formats = directory.values(tag::SAMPLE_FORMAT)?;
    for format in formats.iter().flat_map(|formats| formats.iter().take(samples)) {
        match format {
            UNSIGNED => {}
            // Pillow reads signed 8-bit gray as unsigned
            SIGNED if (photometric, samples, bits) == (BLACK_IS_ZERO, 1, 8) => {}
            SIGNED => return Err("signed samples are not supported".to_owned()),
            3 => return Err(format!("floating-point samples ({bits} bits) are not supported")),
            other => return Err(format!("samples of format {other} are not supported")),
        }
    }
    let extra = directory.values(tag::EXTRA_SAMPLES)?;
    let extra = |index: usize| extra.as_ref().and_then(|extra| extra.get(index));
    // Meaning of the first extra sample: unspecified (0), associated alpha (1), unassociated alpha (2,
    // or 999, which CorelDRAW writes). `Some(true)` is associated alpha.
    let alpha = |colors: usize| match (samples.checked_sub(colors), extra(0)) {
        (None, _) => Err(format!("{samples} samples a pixel are too few")),
        (Some(0), _) => Ok(None),
        (Some(_), Some(0)) => Ok(None),
        (Some(_), Some(1)) => Ok(Some(true)),
        (Some(_), Some(2 | 999)) => Ok(Some(false)),
        // a single undeclared extra sample is treated as alpha
        (Some(1), None) => Ok(Some(false)),
        (Some(_), None) => Err(format!("{samples} samples a pixel without their meaning are not supported")),
        (Some(_), Some(other)) => Err(format!("extra samples of kind {other} are not supported")),
    };
    let color = match photometric {
        WHITE_IS_ZERO | BLACK_IS_ZERO => {
            let gray = Color::Gray { white_is_zero: photometric == WHITE_IS_ZERO };
            match alpha(1)? {
                None => gray,
                Some(false) if photometric == BLACK_IS_ZERO => Color::GrayAlpha,
                Some(_) => {
                    return Err("gray that is premultiplied or inverted is not supported".to_owned());
                }
            }
        }
        RGB => match alpha(3)? {
            None => Color::Rgb,
            Some(true) => Color::PremultipliedRgba,
            Some(false) => Color::Rgba,
        },
        PALETTE if bits > 8 => return Err(format!("a palette of {bits} bits is not supported")),
        PALETTE => match alpha(1)? {
            None => Color::Palette,
            Some(false) => Color::PaletteAlpha,
            Some(true) => return Err("a palette with premultiplied alpha is not supported".to_owned()),
        },
        CMYK if samples == 4 || extra(0) == Some(0) => Color::Cmyk,
        CMYK => return Err(format!("CMYK of {samples} samples is not supported")),
        YCBCR if samples == 1 => Color::Gray { white_is_zero: false },
        YCBCR if samples == 3 => Color::YCbCr,
        8 => return Err("CIE L*a*b* is not supported".to_owned()),
        32803 => return Err("it is a raw camera file (colour filter array)".to_owned()),
        other => return Err(format!("photometric interpretation {other} is not supported")),
    };
    if color.samples() > samples {
        return Err(format!("{samples} samples a pixel are too few"));
    }
    match color {
        Color::Gray { .. } | Color::Palette if samples == 1 => Ok(color),
        _ if bits >= 8 => Ok(color),
        _ => Err(format!("{samples} samples of {bits} bits are not supported")),
    }
}
