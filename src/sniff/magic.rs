//! Magic bytes, and the content that begins with them.

use crate::items::ImageFormat;

use self::Content::{Image, Other, OtherImage};

/// The kind of content that some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An image of a format that we decode.
    Image(ImageFormat),
    /// An image of a format that we do not decode, by the format's name.
    OtherImage(&'static str),
    /// Something known that is not an image, with its article.
    Other(&'static str),
    /// Bytes of no known kind.
    Unknown,
}

pub(super) const GZIP: &[u8] = b"\x1f\x8b";
pub(super) const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
pub(super) const PARQUET: &[u8] = b"PAR1";

/// First bytes, and the content that begins with them. The first row that fits counts.
#[rustfmt::skip]
pub(super) const MAGIC: &[(&[u8], Content)] = &[
    (b"\xff\xd8\xff", Image(ImageFormat::Jpeg)),
    (b"\x89PNG\r\n\x1a\n", Image(ImageFormat::Png)),
    (b"GIF87a", Image(ImageFormat::Gif)),
    (b"GIF89a", Image(ImageFormat::Gif)),
    (b"II*\0", Image(ImageFormat::Tiff)),
    (b"MM\0*", Image(ImageFormat::Tiff)),
    (b"II\0*", Image(ImageFormat::Tiff)),
    (b"MM*\0", Image(ImageFormat::Tiff)),
    (b"II+\0", Image(ImageFormat::Tiff)),
    (b"MM\0+", Image(ImageFormat::Tiff)),

    (b"\xff\x0a", OtherImage("JPEG XL")),
    (b"\0\0\0\x0cJXL \r\n\x87\n", OtherImage("JPEG XL")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", OtherImage("JPEG 2000")),
    (b"\xff\x4f\xff\x51", OtherImage("JPEG 2000")),
    (b"II\xbc", OtherImage("JPEG XR")),
    (b"8BPS", OtherImage("a Photoshop document")),
    (b"v/1\x01", OtherImage("OpenEXR")),
    (b"#?RADIANCE", OtherImage("Radiance HDR")),
    (b"#?RGBE", OtherImage("Radiance HDR")),
    (b"DDS ", OtherImage("DDS")),
    (b"qoif", OtherImage("QOI")),
    (b"icns", OtherImage("an Apple icon")),
    (b"gimp xcf", OtherImage("a GIMP image")),
    (b"AT&TFORM", OtherImage("DjVu")),
    (b"BPG\xfb", OtherImage("BPG")),
    (b"FLIF", OtherImage("FLIF")),
    (b"SIMPLE  =", OtherImage("FITS")),
    (b"\x8aMNG", OtherImage("MNG")),
    (b"\x8bJNG", OtherImage("JNG")),
    (b"\xd7\xcd\xc6\x9a", OtherImage("a Windows metafile")),
    (b"%!PS", OtherImage("PostScript")),
    (b"\xc5\xd0\xd3\xc6", OtherImage("PostScript")),
    (b"FUJIFILMCCD-RAW", OtherImage("a raw camera file (RAF)")),
    (b"IIRO", OtherImage("a raw camera file (ORF)")),
    (b"IIRS", OtherImage("a raw camera file (ORF)")),
    (b"MMOR", OtherImage("a raw camera file (ORF)")),
    (b"IIU\0", OtherImage("a raw camera file (RW2)")),
    (b"FOVb", OtherImage("a raw camera file (X3F)")),
    (b"II\x1a\0\0\0HEAPCCDR", OtherImage("a raw camera file (CRW)")),
    (b"\0MRM", OtherImage("a raw camera file (MRW)")),

    (GZIP, Other("gzip data; unpack it first")),
    (b"PK\x03\x04", Other("a zip archive")),
    (b"PK\x05\x06", Other("a zip archive")),
    (b"7z\xbc\xaf\x27\x1c", Other("a 7z archive")),
    (b"Rar!\x1a\x07", Other("a RAR archive")),
    (b"BZh91AY", Other("bzip2 data; unpack it first")),
    (b"x\x01", Other("zlib data; unpack it first")),
    (b"x\x9c", Other("zlib data; unpack it first")),
    (b"x\xda", Other("zlib data; unpack it first")),
    (b"\xfd7zXZ\0", Other("xz data; unpack it first")),
    (ZSTD, Other("zstd data; unpack it first")),
    (b"\x04\x22\x4d\x18", Other("lz4 data; unpack it first")),
    (PARQUET, Other("a Parquet file")),
    (b"\x89HDF\r\n\x1a\n", Other("an HDF5 file")),
    (b"\x93NUMPY", Other("a NumPy array")),
    (b"\x1a\x45\xdf\xa3", Other("a video (Matroska or WebM)")),
    (b"\0\0\x01\xba", Other("a video (MPEG)")),
    (b"\0\0\x01\xb3", Other("a video (MPEG)")),
    (b"FLV\x01", Other("a video (Flash)")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Other("a video (Windows Media)")),
    (b"OggS", Other("an Ogg stream")),
    (b"ID3", Other("an MP3 file")),
    (b"fLaC", Other("a FLAC file")),
    (b"SQLite format 3\0", Other("an SQLite database")),
    (b"\x7fELF", Other("a program")),
    (b"MZ\x90\0", Other("a program")),
    (b"bplist00", Other("a property list")),
    (b"\0\x05\x16\x07", Other("what macOS keeps beside a file (AppleDouble)")),
    (b"\0\0\0\x01Bud1", Other("a .DS_Store file")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Other("an OLE document (Office, Thumbs.db)")),
    (b"wOFF", Other("a font")),
];

/// The bytes after `RIFF` and a length, and the content that has them.
#[rustfmt::skip]
pub(super) const RIFF: &[(&[u8], Content)] = &[
    (b"WEBP", Image(ImageFormat::Webp)),
    (b"AVI ", Other("a video (AVI)")),
    (b"WAVE", Other("a WAV file")),
    (b"", Other("a RIFF file")),
];

/// The content of the first row of `table` that `is_wanted` accepts and whose magic bytes `head` begins with.
pub(super) fn find(
    table: &[(&[u8], Content)],
    head: &[u8],
    is_wanted: fn(&Content) -> bool,
) -> Option<Content> {
    let mut rows = table.iter().filter(|(_, content)| is_wanted(content));
    rows.find(|(magic, _)| head.starts_with(magic)).map(|(_, content)| *content)
}
