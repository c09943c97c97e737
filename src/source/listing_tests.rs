use super::super::compression::tests::gzip;
use super::super::input::Folder as Judged;
use super::super::open::open_shard;
use super::super::records::ReadOptions;
use super::super::webdataset;
use super::*;
use crate::items::{RawRecord, Status};
use crate::skipped::Skipped;
use crate::store::local_stores;
use bytes::Bytes;

fn section(settings: &str) -> InputSection {
    toml::from_str(settings).expect("input section")
}

struct Folder {
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    stores: Stores,
}

impl Folder {
    fn with(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folders");
            std::fs::write(path, name).expect("write");
        }
        let (runtime, stores) = local_stores();
        Self { folder, _runtime: runtime, stores }
    }

    fn uri(&self, name: &str) -> String {
        format!("{}/{name}", self.folder.path().display())
    }

    fn list(&self, inputs: &[&str], settings: &str) -> Result<Vec<ShardRef>, SourceError> {
        let inputs: Vec<_> = inputs.iter().map(|name| self.uri(name)).collect();
        list_shards(&self.stores, &inputs, &section(settings))?.collect()
    }

    /// Shard names with the images of virtual shards, relative to the folder.
    fn outline(&self, inputs: &[&str], settings: &str) -> Vec<String> {
        let shards = self.list(inputs, settings).expect("listed");
        for (index, shard) in shards.iter().enumerate() {
            assert_eq!(shard.index, index as u64);
        }
        let base = self.uri("");
        let outline = shards.iter().map(|shard| match &shard.content {
            ShardContent::Container(_) => shard.name.clone(),
            ShardContent::Objects(entries) => {
                let uris: Vec<_> = entries.iter().map(|entry| entry.object.uri.as_str()).collect();
                format!("{}: {}", shard.name, uris.join(" "))
            }
        });
        outline.map(|line| line.replace(&base, "")).collect()
    }
}

#[test]
fn a_folder_is_listed_in_the_order_of_full_names() {
    // "a-b.tar" < "a.tar" < "a/z.tar" < "a0.tar", as a bucket would list them
    let folder = Folder::with(&["a/z.tar", "a.tar", "a-b.tar", "a0.tar", "b/c/d.parquet", "b/c.tfrecord"]);
    let expected = ["a-b.tar", "a.tar", "a/z.tar", "a0.tar", "b/c.tfrecord", "b/c/d.parquet"];
    assert_eq!(folder.outline(&[""], ""), expected);
    let shards = folder.list(&["b"], "").expect("listed");
    assert_eq!(shards[0].format, ShardFormat::Tfrecord);
    assert_eq!(shards[1].format, ShardFormat::Parquet);
}

#[test]
fn virtual_shards_never_mix_inputs_or_span_containers() {
    let folder = Folder::with(&["x/1.jpg", "x/2.png", "x/3.gif", "x/4.tar", "x/5.jpg", "y/6.jpg", "y/7.jpg"]);
    let expected = [
        "x/1.jpg+2: x/1.jpg x/2.png",
        "x/3.gif+1: x/3.gif",
        "x/4.tar",
        "x/5.jpg+1: x/5.jpg",
        "y/6.jpg+2: y/6.jpg y/7.jpg",
    ];
    assert_eq!(folder.outline(&["x", "y/"], "files_per_shard = 2"), expected);
}

/// A record's id, and its bytes or status.
type Read = (String, Result<Bytes, Status>);

/// Bytes that begin like a PNG.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

impl Folder {
    fn write(&self, name: impl AsRef<std::path::Path>, bytes: &[u8]) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folders");
        std::fs::write(path, bytes).expect("write");
    }

    /// The records of all shards, with ids relative to the folder, and the objects that listing and reading skipped.
    fn records(&self, settings: &str) -> (Vec<Read>, Skipped) {
        let mut shards = list_shards(&self.stores, &[self.uri("")], &section(settings)).expect("a folder");
        let skips = shards.skips();
        let (mut records, mut skipped) = (Vec::new(), Skipped::default());
        for shard in shards.by_ref() {
            let shard = shard.expect("listed");
            let (found, read_skips) = read(&self.stores, &shard, 0);
            skipped.add(&read_skips);
            records.extend(found.into_iter().map(|record| {
                (record.image_id.replace(&self.uri(""), ""), record.content.map_err(|error| error.status))
            }));
        }
        skipped.add(&skips.counts());
        (records, skipped)
    }
}

/// The records of a shard, and the objects that were skipped.
fn read(stores: &Stores, shard: &ShardRef, first: u64) -> (Vec<RawRecord>, Skipped) {
    let options =
        ReadOptions { image_key: None, id_key: None, max_image_bytes: 100, max_page_bytes: 1 << 20 };
    let opened = open_shard(stores, shard, first, &options).expect("open");
    let records = opened.records.map(|record| record.expect("record")).collect();
    (records, opened.skips.counts())
}

#[test]
fn an_image_is_a_record_under_any_name_and_other_objects_are_counted() {
    let folder = Folder::with(&[
        "_SUCCESS",
        ".DS_Store",
        ".git/a.jpg",
        "a.txt",
        "a.jpg",
        "_tmp/part-0.parquet",
        "part.tar#7",
        "readme.md",
    ]);
    let names = [
        "004",
        "_DSC0002.JPG",
        "_selects/a.jpg",
        "_x/005",
        "b.jfif",
        "c.heic",
        "d.img",
        "renamed.json",
        "x.zip",
    ];
    names.iter().for_each(|name| folder.write(name, PNG));
    folder.write("empty", b"");
    folder.write("empty.json", b"");
    let (records, skipped) = folder.records("");
    let mut found: Vec<_> = records.iter().map(|(id, _)| id.as_str()).collect();
    found.sort_unstable();
    let mut expected = vec!["a.jpg"];
    expected.extend(names);
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert!(records.iter().all(|(id, content)| id == "a.jpg" || *content == Ok(Bytes::from_static(PNG))));
    assert_eq!(skipped.to_string(), "2 hidden, 2 underscore, 1 being written, 1 empty, 1 json, 1 md, 1 txt");
}

#[test]
fn files_with_names_that_no_store_can_address_are_read_and_stay_distinct() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::with(&["a.jpg"]);
    for name in [&b"\xe9.jpg"[..], b"\xe8.jpg", b"n\nl.jpg", b"c\xff.json", b"d\xff.json", b"e\xff.tar"] {
        folder.write(std::ffi::OsStr::from_bytes(name), PNG);
    }
    folder.write(std::ffi::OsStr::from_bytes(b"c\xff.json"), b"{}");
    std::os::unix::fs::symlink(
        "nowhere",
        folder.folder.path().join(std::ffi::OsStr::from_bytes(b"z\xff.jpg")),
    )
    .expect("link");
    let (records, skipped) = folder.records("");
    let image = || Ok(Bytes::from_static(PNG));
    let expected = [
        ("a.jpg", Ok(Bytes::from_static(b"a.jpg"))),
        (r"d\xFF.json", image()),
        (r"e\xFF.tar", image()),
        (r"n\x0Al.jpg", image()),
        (r"z\xFF.jpg", Err(Status::ReadError)),
        (r"\xE8.jpg", image()),
        (r"\xE9.jpg", image()),
    ];
    assert_eq!(records, expected.map(|(id, content)| (id.to_owned(), content)));
    assert_eq!(skipped.to_string(), "1 json");
}

#[test]
fn a_resumed_shard_starts_after_the_records_that_a_checkpoint_holds() {
    let folder = Folder::with(&[]);
    let mut images = Vec::new();
    for number in 0..60 {
        let name = format!("{number:02}");
        folder.write(format!("{name}.json"), if number % 3 == 0 { PNG } else { b"{}" });
        images.extend((number % 3 == 0).then(|| folder.uri(&format!("{name}.json"))));
        folder.write(format!("{name}.jpg"), PNG);
        images.push(folder.uri(&format!("{name}.jpg")));
    }
    images.sort_unstable();
    let shard = folder.list(&[""], "").expect("listed").remove(0);
    for resume_at in [0, 1, 2, 3, 40, 79, 80] {
        let (records, skipped) = read(&folder.stores, &shard, resume_at);
        let ids: Vec<_> = records.into_iter().map(|record| record.image_id).collect();
        assert_eq!(ids, images[resume_at as usize..], "from {resume_at} on");
        assert_eq!(skipped.to_string(), "40 json", "from {resume_at} on");
    }
}

#[test]
fn companions_wait_for_images_and_do_not_form_a_shard_before_each_container() {
    let names = ["a.json", "a.tar", "b.json", "b.tar", "c.jpg", "d.tar", "e.json"];
    let folder = Folder::with(&names);
    let expected = ["a.tar", "b.tar", "c.jpg+1: a.json b.json c.jpg", "d.tar", "e.json+1: e.json"];
    assert_eq!(folder.outline(&[""], ""), expected);
    let many: Vec<_> = (0..9).map(|number| format!("{number}.json")).collect();
    let folder = Folder::with(&many.iter().map(String::as_str).chain(["z.jpg"]).collect::<Vec<_>>());
    let outline = folder.outline(&[""], "files_per_shard = 1");
    let sizes: Vec<_> = outline.iter().map(|line| line.split(':').next().expect("a name")).collect();
    assert_eq!(sizes, ["0.json+4", "4.json+4", "z.jpg+1"]);
}

#[test]
fn globs_list_what_matches() {
    let folder = Folder::with(&["1/a.tar", "1/b.tar", "2/a.tar", "2/x/a.tar", "a.tar"]);
    assert_eq!(folder.outline(&["*/a.tar"], ""), ["1/a.tar", "2/a.tar"]);
    assert_eq!(folder.outline(&["**/a.tar"], ""), ["1/a.tar", "2/a.tar", "2/x/a.tar", "a.tar"]);
    assert_eq!(folder.outline(&["[12]/{b,x/a}.tar"], ""), ["1/b.tar", "2/x/a.tar"]);
}

#[test]
fn an_object_matched_twice_belongs_to_the_first_input() {
    let folder = Folder::with(&["a.tar", "b.tar", "c.tar", "list.txt"]);
    assert_eq!(folder.outline(&["b.tar", "*.tar", "c.tar"], ""), ["b.tar", "a.tar", "c.tar"]);
}

#[test]
fn a_later_input_takes_objects_that_an_earlier_one_skipped() {
    let folder = Folder::with(&["d/a.jpg", "d/_x/b.tar", "d/_c.tar", "d/.e/f.jpg", "d/list.txt"]);
    let expected = ["d/a.jpg+1: d/a.jpg d/list.txt", "d/_x/b.tar", "d/_c.tar", "d/.e/f.jpg+1: d/.e/f.jpg"];
    assert_eq!(folder.outline(&["d", "d/_x/", "d/_c.tar", "d/.e"], ""), expected);
    folder.write("d/list.txt", b"a.jpg");
    let expected = ["d/a.jpg+1: d/a.jpg d/list.txt", "d/list.txt#1+1: d/a.jpg"];
    assert_eq!(folder.outline(&["d", "d/list.txt"], ""), expected);
}

#[test]
fn the_same_input_twice_is_refused_in_any_spelling() {
    let folder = Folder::with(&["d/a.tar"]);
    for inputs in [["d", "d/"], ["d/a.tar", "d/../d/a.tar"], ["d/*.tar", "./d/*.tar"]] {
        let message = folder.list(&inputs, "").expect_err("repeated").to_string();
        assert!(message.contains("given twice"), "{message}");
    }
}

#[test]
fn an_input_with_nothing_to_score_is_an_error_that_counts_its_objects() {
    let folder = Folder::with(&["d/readme.md", "d/.hidden", "d/x.csv", "l/a.txt"]);
    std::fs::create_dir(folder.folder.path().join("empty")).expect("folder");
    let hint = " (to score a list of images, name it as an input or set input.format = \"manifest\")";
    let cases = [
        ("d", "skipped 3 that are not images: 1 csv, 1 hidden, 1 md".to_owned()),
        ("l", format!("skipped 1 that are not images: 1 txt{hint}")),
        ("empty", "nothing matches".to_owned()),
        ("d/*.tar", "nothing matches".to_owned()),
    ];
    for (input, expected) in cases {
        let error = folder.list(&[input], "").expect_err(&expected);
        assert!(matches!(&error, SourceError::NoInput { message, .. } if *message == expected), "{error}");
        assert_eq!(folder.list(&[input], "allow_empty = true").expect("allowed"), []);
    }
    let error = folder.list(&["missing.tar"], "").expect_err("missing");
    assert!(matches!(error, SourceError::Storage(error) if error.is_not_found()));
}

#[test]
fn a_named_object_with_an_unknown_name_is_judged_by_its_bytes() {
    let folder = Folder::with(&["mystery", "nonsense"]);
    let tar = webdataset::tests::archive(&[("a.jpg", b"x")]);
    std::fs::write(folder.folder.path().join("mystery"), gzip(&tar)).expect("write");
    let shards = folder.list(&["mystery"], "").expect("a tar");
    assert_eq!(shards[0].format, ShardFormat::Webdataset);
    assert!(shards[0].content != ShardContent::Objects(Vec::new()));
    folder.write("zip", b"PK\x03\x04");
    folder.write("noise", &[0x9c, 3, 0xfe, 0x81, 0]);
    for (name, words) in [
        ("nonsense", "it is text; a list of images needs input.format = \"manifest\""),
        ("zip", "it is a zip archive, not a shard or an image"),
        ("noise", "set input.format"),
    ] {
        let message = folder.list(&[name], "").expect_err("unknown").to_string();
        assert!(message.contains(words), "{message}");
    }
    folder.write("photo.txt", PNG);
    assert_eq!(folder.outline(&["photo.txt"], ""), ["photo.txt+1: photo.txt"]);
}

#[test]
fn an_explicit_format_overrides_the_names() {
    let folder = Folder::with(&["a.bin", "b", "_c", "d.json", "_e.tar", "_f/g.parquet", ".h.jpg"]);
    folder.write("_SUCCESS", b"");
    let shards = folder.list(&[""], "format = 'tfrecord'").expect("listed");
    assert!(shards.iter().all(|shard| shard.format == ShardFormat::Tfrecord));
    assert_eq!(shards.len(), 3);
    let (records, skipped) = folder.records("format = 'files'");
    let mut found: Vec<_> = records.iter().map(|(id, _)| id.as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, ["_c", "_e.tar", "_f/g.parquet", "a.bin", "b", "d.json"]);
    assert_eq!(skipped.to_string(), "1 empty, 1 hidden");
}

#[test]
fn containers_have_a_size_and_a_version() {
    let folder = Folder::with(&["a.tar"]);
    for input in ["", "a.tar", "*.tar"] {
        let shards = folder.list(&[input], "").expect("listed");
        match &shards[0].content {
            ShardContent::Container(object) => {
                assert_eq!(object.size_bytes, Some(5));
                assert!(object.version.is_some());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_manifest_is_split_into_virtual_shards() {
    let folder = Folder::with(&["d/1.jpg", "d/2.jpg"]);
    let text = "# two\n1.jpg\n2.jpg\n{\"uri\": \"gone.jpg\", \"id\": \"G\"}\n";
    for (name, bytes) in [("list.txt", text.as_bytes().to_vec()), ("list.jsonl.gz", gzip(text.as_bytes()))] {
        std::fs::write(folder.folder.path().join("d").join(name), bytes).expect("write");
        let input = format!("d/{name}");
        let expected = [format!("{input}#2+2: d/1.jpg d/2.jpg"), format!("{input}#4+1: d/gone.jpg")];
        assert_eq!(folder.outline(&[&input], "files_per_shard = 2"), expected);
    }
    let shards = folder.list(&["d/list.txt"], "").expect("listed");
    let options =
        ReadOptions { image_key: None, id_key: None, max_image_bytes: 100, max_page_bytes: 1 << 20 };
    let records: Vec<_> = open_shard(&folder.stores, &shards[0], 0, &options)
        .expect("open")
        .records
        .map(|record| record.expect("record"))
        .collect();
    assert_eq!(records[0].content.as_deref().expect("image"), b"d/1.jpg");
    assert_eq!(records[2].image_id, "G");
    assert!(records[2].content.is_err());
}

#[test]
fn a_bad_manifest_ends_the_listing_and_an_empty_one_is_no_input() {
    let folder = Folder::with(&[]);
    std::fs::write(folder.folder.path().join("bad.jsonl"), "a.jpg\n{}\n").expect("write");
    std::fs::write(folder.folder.path().join("empty.txt"), "# nothing\n").expect("write");
    let inputs = [folder.uri("bad.jsonl")];
    let mut shards = list_shards(&folder.stores, &inputs, &section("files_per_shard = 1")).expect("found");
    assert!(shards.next().expect("first").is_ok());
    let message = shards.next().expect("second").expect_err("bad line").to_string();
    assert!(message.contains("bad.jsonl: line 2"), "{message}");
    assert!(shards.next().is_none());
    let message = folder.list(&["empty.txt"], "").expect_err("empty").to_string();
    assert!(message.contains("the manifest names no image"), "{message}");
}

#[test]
fn linked_folders_and_files_are_listed_and_so_are_dangling_links() {
    let folder = Folder::with(&["real/a.jpg", "in/b.jpg"]);
    let at = |name: &str| folder.folder.path().join(name);
    std::os::unix::fs::symlink(at("real"), at("in/linked")).expect("link");
    std::os::unix::fs::symlink(at("real/a.jpg"), at("in/c.jpg")).expect("link");
    std::os::unix::fs::symlink(at("nowhere"), at("in/dead.jpg")).expect("link");
    std::os::unix::fs::symlink(at("in"), at("in/loop")).expect("link");
    std::os::unix::fs::symlink("self.jpg", at("in/self.jpg")).expect("link");
    std::os::unix::fs::symlink("c.jpg/below", at("in/through.jpg")).expect("link");
    let mut found = Vec::new();
    for shard in folder.list(&["in"], "").expect("listed") {
        if let ShardContent::Objects(entries) = shard.content {
            found.extend(entries.into_iter().map(|entry| entry.object.uri.replace(&folder.uri(""), "")));
        }
    }
    found.sort_unstable();
    assert_eq!(
        found,
        ["in/b.jpg", "in/c.jpg", "in/dead.jpg", "in/linked/a.jpg", "in/self.jpg", "in/through.jpg"]
    );
}

#[test]
fn a_relative_folder_gives_relative_names() {
    let (_runtime, stores) = local_stores();
    let shards: Vec<_> =
        list_shards(&stores, &["src/source/*.rs".to_owned()], &section("format = 'parquet'"))
            .expect("found")
            .map(|shard| shard.expect("listed").name)
            .collect();
    assert!(shards.contains(&"src/source/mod.rs".to_owned()), "{shards:?}");
}

#[test]
fn a_shard_list_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<ShardList>();
}

#[test]
fn an_empty_object_is_a_folder_marker_if_no_object_has_its_name() {
    let folder = Folder::with(&["x.tar"]);
    std::fs::write(folder.folder.path().join("empty.tar"), b"").expect("write");
    let list = list_shards(&folder.stores, &[folder.uri("")], &section("")).expect("a folder");
    assert!(!list.classifier.is_folder_marker(&folder.uri("empty.tar")).expect("looked up"));
    assert!(list.classifier.is_folder_marker(&folder.uri("day1.tar")).expect("looked up"));
}

#[test]
fn a_walk_skips_folders_that_cannot_hold_a_match() {
    let (_runtime, stores) = local_stores();
    let folder = tempfile::tempdir().expect("folder");
    let base = folder.path().to_str().expect("UTF-8");
    ["a", ".cache"].iter().for_each(|name| std::fs::create_dir(folder.path().join(name)).expect("folder"));
    let rules =
        |pattern: &str| Input::find(&stores, &format!("{base}/{pattern}")).expect("an input").folder_rules();
    let cases = [
        ("", &["a", "a/b", "_staging"][..], &[".git", "a/.cache/b"][..], &["lost+found", "a/lost+found"][..]),
        ("run-*/out/*.tar", &["run-1", "run-1/out"], &[], &["systemd-1", "run-1/in", ".run-1"]),
        ("a/**/x?/*.jpg", &["a", "b/c", "_b"], &[".b"], &[]),
        (".cache/*/*.jpg", &["a"], &[".b"], &[]),
        ("a/.c*/*.jpg", &[".cache"], &[], &["b"]),
        ("{a/b,c}/*.jpg", &["a", "a/b", "x"], &[], &[]),
    ];
    for (pattern, into, hidden, outside) in cases {
        let rules = rules(pattern);
        for (names, judged) in [(into, Judged::Descend), (hidden, Judged::Hidden), (outside, Judged::Outside)]
        {
            names.iter().for_each(|name| assert_eq!(rules.judge(name), judged, "{pattern} {name}"));
        }
    }
}

#[test]
fn a_file_url_with_a_pattern_is_a_glob() {
    let folder = Folder::with(&["in/a.tar", "in/bc.tar", "in/d.jpg"]);
    let input = format!("file://{}/?.tar", folder.uri("in"));
    let listed = list_shards(&folder.stores, &[input], &section("")).expect("listed");
    let names: Vec<_> = listed.map(|shard| shard.expect("listed").name).collect();
    assert!(names.len() == 1 && names[0].ends_with("/in/a.tar"), "{names:?}");
}

#[test]
fn a_signed_url_is_not_a_glob() {
    let (_runtime, stores) = local_stores();
    let error = Input::find(&stores, "az://b/c/?sv=1&sig=secret").err().expect("refused").to_string();
    assert!(error.contains("signature") && !error.contains("secret"), "{error}");
}
