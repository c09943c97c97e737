//! The general-purpose compressions of strips and tiles: PackBits, LZW, Deflate and zstd.
//!
//! - Each function fills `output` and returns how many bytes of `stream` it read.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation};

use super::super::lzw::{Dialect, Lzw};

/// Bytes of the optional checksum at the end of a zstd frame.
const ZSTD_CHECKSUM_BYTES: usize = 4;

fn too_short(written: usize, wanted: usize) -> String {
    format!("holds {written} of {wanted} bytes")
}

/// A stream that is longer than its strip or tile, and has no end: damage may have removed the end, and
/// with it the checksum.
fn too_long_without_end(room: usize) -> String {
    format!("holds more than {room} bytes and does not end")
}

pub(super) fn unpack_bits(stream: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let wanted = output.len();
    let (mut at, mut written) = (0, 0);
    while written < wanted {
        let count = *stream.get(at).ok_or_else(|| too_short(written, wanted))? as i8;
        at += 1;
        match count {
            // no operation, by definition
            i8::MIN => {}
            0.. => {
                let length = (count as usize + 1).min(wanted - written);
                let literal = stream.get(at..at + length).ok_or_else(|| too_short(written, wanted))?;
                output[written..written + length].copy_from_slice(literal);
                at += length;
                written += length;
            }
            _ => {
                let length = (1 - isize::from(count)).unsigned_abs().min(wanted - written);
                let value = *stream.get(at).ok_or_else(|| too_short(written, wanted))?;
                output[written..written + length].fill(value);
                at += 1;
                written += length;
            }
        }
    }
    Ok(at)
}

pub(super) fn decode_lzw(lzw: &mut Lzw, stream: &[u8], output: &mut [u8]) -> Result<usize, String> {
    // The first code is the clear code. In the old bit order, its first byte is 0.
    let dialect = match stream {
        [0, second, ..] if second & 1 != 0 => Dialect::OldTiff,
        _ => Dialect::Tiff,
    };
    lzw.dialect = dialect;
    let mut codes = stream.iter().copied();
    let (written, _) = lzw.decode(8, &mut codes, output);
    if written < output.len() {
        Err(too_short(written, output.len()))
    } else {
        Ok(stream.len() - codes.len())
    }
}

/// Fill at least the first `wanted` bytes of `output`, and the rest as far as the stream goes. The
/// stream is then read on to its checksum, but to no more than twice the length of `output`.
pub(super) fn inflate(
    inflater: &mut Decompress,
    stream: &[u8],
    wanted: usize,
    output: &mut [u8],
) -> Result<usize, String> {
    inflater.reset(true);
    let mut behind = [0; 4096];
    loop {
        let (read, written) = (inflater.total_in() as usize, inflater.total_out() as usize);
        let room = if written < output.len() { &mut output[written..] } else { &mut behind[..] };
        let result = inflater.decompress(&stream[read..], room, FlushDecompress::None);
        let (now_read, now_written) = (inflater.total_in() as usize, inflater.total_out() as usize);
        let status = match result {
            Ok(status) => status,
            Err(error) if now_written < wanted => {
                return Err(format!("{error}, {}", too_short(now_written, wanted)));
            }
            Err(error) => return Err(error.to_string()),
        };
        let is_at_end = status == Status::StreamEnd || (now_read, now_written) == (read, written);
        if is_at_end && now_written < wanted {
            return Err(too_short(now_written, wanted));
        }
        if is_at_end && status != Status::StreamEnd && now_written > output.len() {
            return Err(too_long_without_end(output.len()));
        }
        if is_at_end || now_written > 2 * output.len() {
            return Ok(now_read);
        }
    }
}

/// As `inflate`, for zstd data, which may consist of several frames: the frame that holds the last
/// byte of `output` is read to its end.
pub(super) fn decompress_zstd(
    decoder: &mut ZstdDecoder,
    stream: &[u8],
    wanted: usize,
    output: &mut [u8],
) -> Result<usize, String> {
    decoder.reinit().map_err(|error| error.to_string())?;
    let mut behind = [0; 4096];
    let (mut read, mut written) = (0, 0);
    loop {
        let room = if written < output.len() { &mut output[written..] } else { &mut behind[..] };
        let status = decoder.run_on_buffers(&stream[read..], room).map_err(|error| error.to_string())?;
        read += status.bytes_read;
        written += status.bytes_written;
        let has_ended = status.remaining == 0 && written >= wanted;
        let is_at_end = has_ended || (status.bytes_read, status.bytes_written) == (0, 0);
        if is_at_end && written < wanted {
            return Err(too_short(written, wanted));
        }
        // a frame of the right length may lack only its checksum
        let allowed = output.len() - usize::from(status.remaining > ZSTD_CHECKSUM_BYTES);
        if is_at_end && !has_ended && written > allowed {
            return Err(too_long_without_end(output.len()));
        }
        if is_at_end || written > 2 * output.len() {
            return Ok(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packbits_data_holds_literals_and_runs() {
        let mut output = [0; 6];
        assert_eq!(unpack_bits(&[1, 7, 8, 0x80, 0xfd, 9], &mut output), Ok(6));
        assert_eq!(output, [7, 8, 9, 9, 9, 9]);
        assert_eq!(unpack_bits(&[1, 7, 8], &mut output), Err("holds 2 of 6 bytes".to_owned()));
    }
}
