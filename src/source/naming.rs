//! Judges a listed object, or a member of an archive, by its name.
//!
//! Input: a name relative to its input. Output: a [`Rule`].
//!
//! - Apart from hidden names, a name never excludes an image from the input. An object with the extension of an image,
//!   an unknown extension or none is a record whatever it holds. An object with the extension of a companion of images
//!   ([`SIDECARS`]) is a record if its first bytes are those of an image.
//! - A name that begins with a dot, or that is in a folder whose name does, is hidden. Hidden objects are not read.
//! - An underscore hides containers (Spark's `_temporary/`, our own `_checkpoints/`) and makes every other object
//!   without the extension of an image a companion. Images stay records: cameras write `_DSC0001.JPG`.
//! - All kinds of skipped objects are defined in this file, so the number of counts is bounded.

use crate::items::ShardFormat;

/// Kinds of skipped objects besides the extensions below.
pub const HIDDEN: &str = "hidden";
pub const UNDERSCORE: &str = "underscore";
pub const NO_EXTENSION: &str = "no extension";
pub const EMPTY: &str = "empty";
pub const LINK: &str = "link";
pub const SPECIAL: &str = "special file";
pub const FOLDER_MARKER: &str = "folder marker";
pub const BEING_WRITTEN: &str = "being written";
pub const UNADDRESSABLE: &str = "unaddressable";
pub const OTHER_IMAGE: &str = "other image";
pub const COMMENT: &str = "comment";

/// The treatment of an object by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It is not read and is counted under this kind.
    Skip(&'static str),
    /// A shard in this format.
    Container(ShardFormat),
    /// A list of images: an object that an input names as one, or any object if `input.format` is `manifest`.
    Manifest,
    /// A record, whatever it holds.
    Image,
    /// A record if it holds an image, else counted under this kind.
    Sidecar(&'static str),
}

/// Extensions of images, whether we decode the format or not.
const IMAGES: [&str; 50] = [
    "jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "png", "apng", "webp", "gif", "bmp", "dib",
    "tif", "tiff", "heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "j2c", "jpf", "jpx", "jpm", "ico",
    "cur", "psd", "svg", "tga", "pcx", "pbm", "pgm", "ppm", "pnm", "exr", "hdr", "qoi", "img", "cr2", "cr3",
    "nef", "arw", "dng", "raf", "orf", "rw2", "raw",
];

/// Extensions of companions of images: labels and captions, tables and arrays, audio and video, archives, documents,
/// programs, checksums and markers.
#[rustfmt::skip]
const SIDECARS: &[&str] = &[
    "json", "jsonl", "ndjson", "geojson", "txt", "text", "csv", "tsv", "xml", "yaml", "yml", "toml", "ini", "cfg",
    "conf", "md", "rst", "html", "htm", "log", "lst", "list", "cls", "class", "cls2", "id", "ids", "idx", "index",
    "label", "labels", "lbl", "names", "tag", "tags", "caption", "captions", "prompt", "transcript", "wnid", "bbox",
    "boxes", "meta", "metadata", "url", "key", "lang", "srt", "vtt", "xmp", "aae", "gpx", "kml",
    "npy", "npz", "pt", "pth", "pkl", "pickle", "pyd", "ten", "tenbin", "mp", "msg", "msgpack", "cbor", "mat", "h5",
    "hdf5", "arrow", "feather", "ipc", "avro", "orc", "db", "sqlite", "sqlite3", "mdb", "onnx", "pb", "pbtxt",
    "safetensors", "ckpt",
    "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "wav", "mp3", "m4a", "aac", "flac", "ogg", "opus",
    "pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "odt", "rtf",
    "zip", "gz", "zst", "bz2", "xz", "lz4", "7z", "rar", "tar", "tgz", "tzst", "tfrecord", "tfrecords", "parquet",
    "py", "ipynb", "js", "css", "sh", "exe", "dll", "so",
    "md5", "sha1", "sha256", "sha512", "crc", "sum", "sig", "asc", "lock", "pid", "tmp", "bak", "done", "ok", "ready",
    "success",
];

/// Names without an extension that are never images.
const DOCUMENTS: [&str; 12] = [
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "authors",
    "changelog",
    "makefile",
    "dockerfile",
    "md5sums",
    "sha256sums",
    "checksums",
];

/// Extensions of whole-file compression.
const COMPRESSIONS: [&str; 4] = ["gz", "zst", "bz2", "xz"];

/// The suffix of the objects that mark folders in a bucket for Hadoop.
const HADOOP_FOLDER: &str = "_$folder$";

/// The rule for a listed object that is not hidden. `takes_underscored` is set if a glob spells out such names.
pub fn listed(name: &str, takes_underscored: bool) -> Rule {
    if name.ends_with(HADOOP_FOLDER) {
        return Rule::Skip(FOLDER_MARKER);
    }
    match by_extension(name) {
        Rule::Container(_) if is_underscored(name) && !takes_underscored => Rule::Skip(UNDERSCORE),
        rule => rule,
    }
}

/// The rule for a member of an archive. Containers inside archives are not read.
pub fn member(name: &str) -> Rule {
    if is_hidden(name) {
        return Rule::Skip(HIDDEN);
    }
    match by_extension(name) {
        Rule::Container(format) => Rule::Sidecar(match format {
            ShardFormat::Tfrecord => "tfrecord",
            ShardFormat::Webdataset | ShardFormat::Files => "tar",
            ShardFormat::Parquet => "parquet",
        }),
        rule => rule,
    }
}

/// The rule for an object of `size` bytes. An empty object without an extension is not an image: bucket consoles create
/// such objects to mark folders, and programs to mark completion.
pub fn of_size(rule: Rule, name: &str, size: u64) -> Rule {
    match rule {
        Rule::Image if size == 0 && extension(base(name)).is_none() => Rule::Skip(EMPTY),
        Rule::Sidecar(kind) if size == 0 => Rule::Skip(kind),
        rule => rule,
    }
}

/// Whether a part of `name` begins with a dot.
pub fn is_hidden(name: &str) -> bool {
    segments(name).any(|part| part.starts_with('.') && part != "." && part != "..")
}

/// Whether the last extension of `name` is an image format's, in any case.
pub fn has_image_extension(name: &str) -> bool {
    extension(base(name)).is_some_and(|extension| known(&IMAGES, extension).is_some())
}

/// The format of a container with this name, in any case: `.tfrecord` and `.tfrecords` (also followed by a shard number
/// such as `-00000-of-00010`), `.tar`, `.tgz`, `.parquet`; compression may follow, except for Parquet.
pub fn container(name: &str) -> Option<ShardFormat> {
    let name = base(name).to_ascii_lowercase();
    let name = without_shard_number(&name);
    let plain = without_compression(name);
    match extension(without_shard_number(plain.unwrap_or(name)))? {
        "tfrecord" | "tfrecords" => Some(ShardFormat::Tfrecord),
        "tar" | "tgz" | "tzst" => Some(ShardFormat::Webdataset),
        "parquet" if plain.is_none() => Some(ShardFormat::Parquet),
        _ => None,
    }
}

/// Whether `name` is the name of a list of images: `.txt`, `.jsonl`, `.ndjson`, in any case; `.gz` and `.zst` may
/// follow.
pub fn is_manifest(name: &str) -> bool {
    let name = base(name).to_ascii_lowercase();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    matches!(extension(plain), Some("txt" | "jsonl" | "ndjson"))
}

fn by_extension(path: &str) -> Rule {
    if let Some(format) = container(path) {
        return Rule::Container(format);
    }
    let name = without_shard_number(base(path));
    let whole = extension(name).and_then(|extension| known(SIDECARS, extension));
    let inner = without_compression(name).and_then(extension);
    if has_image_extension(name) || inner.is_some_and(|inner| known(&IMAGES, inner).is_some()) {
        return Rule::Image;
    }
    if let Some(kind) = inner.and_then(|inner| known(SIDECARS, inner)).or(whole) {
        return Rule::Sidecar(kind);
    }
    if is_underscored(path) {
        return Rule::Sidecar(UNDERSCORE);
    }
    if extension(name).is_none() && known(&DOCUMENTS, name).is_some() {
        return Rule::Sidecar(NO_EXTENSION);
    }
    Rule::Image
}

/// Whether a part of `name` begins with an underscore.
fn is_underscored(name: &str) -> bool {
    segments(name).any(|part| part.starts_with('_'))
}

fn segments(name: &str) -> impl Iterator<Item = &str> {
    without_query(name).split('/')
}

fn base(name: &str) -> &str {
    let name = without_query(name);
    name.rsplit('/').next().unwrap_or(name)
}

/// `name` without its query if it is a web URL. Other names may contain question marks.
pub fn without_query(name: &str) -> &str {
    let end = if is_web_address(name) { name.find('?') } else { None };
    &name[..end.unwrap_or(name.len())]
}

/// Whether `name` begins with `http://` or `https://`, in any case.
pub fn is_web_address(name: &str) -> bool {
    let scheme = name.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web)))
}

/// The text after the last dot of a base name, unless it is empty.
pub fn extension(base: &str) -> Option<&str> {
    base.rsplit_once('.').map(|(_, extension)| extension).filter(|extension| !extension.is_empty())
}

/// The entry of `list` that equals `extension`, in any case.
fn known<'a>(list: &[&'a str], extension: &str) -> Option<&'a str> {
    list.iter().copied().find(|known| known.eq_ignore_ascii_case(extension))
}

/// Cut `.gz` and the like off the end.
fn without_compression(name: &str) -> Option<&str> {
    let (stem, extension) = name.rsplit_once('.')?;
    known(&COMPRESSIONS, extension).map(|_| stem)
}

/// Cut `-00003-of-00010` off the end.
fn without_shard_number(name: &str) -> &str {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some((rest, total)) = name.rsplit_once("-of-") else { return name };
    match rest.rsplit_once('-') {
        Some((stem, shard)) if number(shard) && number(total) => stem,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers_are_recognised_in_any_case() {
        let cases = [
            ("gs://b/a.tfrecord", Some(ShardFormat::Tfrecord)),
            ("a.tfrecords.gz", Some(ShardFormat::Tfrecord)),
            ("train.tfrecord-00000-of-00010", Some(ShardFormat::Tfrecord)),
            ("train-00000-of-00010.tfrecord", Some(ShardFormat::Tfrecord)),
            ("train.tfrecord-00000-of-00010.gz", Some(ShardFormat::Tfrecord)),
            ("a.tar", Some(ShardFormat::Webdataset)),
            ("A.TAR.GZ", Some(ShardFormat::Webdataset)),
            ("a.tgz", Some(ShardFormat::Webdataset)),
            ("a.tar.zst", Some(ShardFormat::Webdataset)),
            ("a.tar.bz2", Some(ShardFormat::Webdataset)),
            ("data/train-00000-of-00002.parquet", Some(ShardFormat::Parquet)),
            ("a.parquet.gz", None),
            ("tar", None),
            ("folder.tar/readme", None),
            ("train-00000-of-00010", None),
        ];
        for (name, expected) in cases {
            assert_eq!(container(name), expected, "{name}");
        }
    }

    #[test]
    fn manifests_are_recognised_by_their_names() {
        for name in ["list.jsonl", "list.txt.gz", "a/LIST.TXT", "b.ndjson"] {
            assert!(is_manifest(name), "{name}");
        }
        for name in ["list", "txt", "a.csv", "a.txt/b", "a.txt.bz2"] {
            assert!(!is_manifest(name), "{name}");
        }
    }

    #[test]
    fn a_name_never_excludes_an_image() {
        let image = [
            "a.jpg",
            "a.JFIF",
            "a.jpe",
            "a.heic",
            "a.avif",
            "a.img",
            "004",
            "d/a.b.c",
            "_DSC0002.JPG",
            "_selects/a.jpg",
            "a.jpg.gz",
            "a.",
            "v1.2/cat.tiff",
            "a.jpg-00000-of-00002",
            "train-00000-of-00010",
        ];
        for name in image {
            assert_eq!(listed(name, false), Rule::Image, "{name}");
            assert_eq!(member(name), Rule::Image, "{name}");
        }
        let sidecar = [
            ("a.json", "json"),
            ("a.TXT", "txt"),
            ("d/a.cls", "cls"),
            ("a.json.gz", "json"),
            ("a.gz", "gz"),
            ("a.parquet.gz", "parquet"),
            ("a.tmp.gz", "tmp"),
            ("labels.json-00000-of-00010", "json"),
            ("README", NO_EXTENSION),
            ("_SUCCESS", UNDERSCORE),
            ("_started_123", UNDERSCORE),
            ("_spark_metadata/0", UNDERSCORE),
            ("_selects/004", UNDERSCORE),
            ("_run.json", "json"),
        ];
        for (name, kind) in sidecar {
            assert_eq!(listed(name, false), Rule::Sidecar(kind), "{name}");
            assert_eq!(member(name), Rule::Sidecar(kind), "{name}");
        }
    }

    #[test]
    fn a_dot_hides_everything_and_an_underscore_hides_containers() {
        for (name, hidden) in [
            (".a.jpg", true),
            (".git/a.jpg", true),
            ("d/._a.jpg", true),
            ("./a/../b.jpg", false),
            ("a.b/c", false),
        ] {
            assert_eq!(is_hidden(name), hidden, "{name}");
            assert_eq!(member(name) == Rule::Skip(HIDDEN), hidden, "{name}");
        }
        let cases = [
            ("_checkpoints/a.parquet", false, Rule::Skip(UNDERSCORE)),
            ("_a.tar", false, Rule::Skip(UNDERSCORE)),
            ("_x/a.tar", true, Rule::Container(ShardFormat::Webdataset)),
            ("d_$folder$", false, Rule::Skip(FOLDER_MARKER)),
        ];
        for (name, underscored, rule) in cases {
            assert_eq!(listed(name, underscored), rule, "{name}");
        }
        assert_eq!(member("./a/../b.jpg"), Rule::Image);
        assert_eq!(member("inner.tar"), Rule::Sidecar("tar"));
    }

    proptest::proptest! {
        #[test]
        fn random_names_never_panic(name in "\\PC*") {
            let _ = (listed(&name, false), member(&name), is_manifest(&name));
        }
    }
}
