//! Compresses pixels to JPEG and decompresses them, for models whose reference code does so.
//!
//! The reference code of Yahoo's open_nsfw resizes with one library and passes the image to the next
//! as a JPEG in memory; its scores are those of the decompressed pixels.
//!
//! - Pixels equal those of Pillow's `save(format="JPEG", quality=…)` and `open` bit for bit: 4:2:0
//!   chroma subsampling, the accurate integer DCT, standard Huffman tables.

use turbojpeg::{Compressor, Decompressor, Image, OutputBuf, PixelFormat, Subsamp};

/// Compressor, decompressor and memory of one thread.
#[derive(Debug, Default)]
pub(in crate::decode) struct JpegRoundTrip {
    codecs: Option<(Compressor, Decompressor)>,
    jpeg: Vec<u8>,
}

impl JpegRoundTrip {
    /// Replace the RGB `pixels`, of `width` × `height`, by the pixels of a JPEG of `quality` (1 to 100)
    /// made from them.
    ///
    /// # Panics
    /// If libjpeg-turbo fails to compress the pixels, or to read what it has written: it is out of memory.
    pub(in crate::decode) fn apply(&mut self, pixels: &mut [u8], (width, height): (u32, u32), quality: u8) {
        self.try_apply(pixels, (width as usize, height as usize), quality)
            .expect("libjpeg-turbo has memory, and reads what it writes");
    }

    fn try_apply(
        &mut self,
        pixels: &mut [u8],
        (width, height): (usize, usize),
        quality: u8,
    ) -> turbojpeg::Result<()> {
        if self.codecs.is_none() {
            self.codecs = Some((Compressor::new()?, Decompressor::new()?));
        }
        let (compressor, decompressor) = self.codecs.as_mut().expect("created above");
        compressor.set_quality(i32::from(quality))?;
        compressor.set_subsamp(Subsamp::Sub2x2)?;
        let (pitch, format) = (width * PixelFormat::RGB.size(), PixelFormat::RGB);
        self.jpeg.resize(compressor.buf_len(width, height)?, 0);
        let image = Image { pixels: &*pixels, width, pitch, height, format };
        let mut output = OutputBuf::borrowed(&mut self.jpeg);
        compressor.compress(image, &mut output)?;
        decompressor.decompress(&output, Image { pixels, width, pitch, height, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_lossy_and_repeatable() {
        let size = (31, 17);
        let pixels: Vec<u8> =
            (0..31 * 17 * 3).map(|at| (at % 93 / 3 * 4 + at / 93 * 3 + at % 3 * 20) as u8).collect();
        let mut codec = JpegRoundTrip::default();
        let mut round_trip = |quality| {
            let mut changed = pixels.clone();
            codec.apply(&mut changed, size, quality);
            changed
        };
        let (low, high) = (round_trip(10), round_trip(75));
        assert_ne!(high, pixels, "something is lost");
        assert_eq!(round_trip(75), high, "earlier round trips have no effect");
        let error =
            |changed: &[u8]| pixels.iter().zip(changed).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        assert!(error(&high) < error(&low), "a higher quality keeps more");
    }
}
