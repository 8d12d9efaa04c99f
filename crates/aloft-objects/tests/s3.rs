//! The S3 endpoint, driven by a real S3 client and by raw requests.

use std::{ops::Deref, sync::Arc, time::Duration};

use aloft_objects::{Claims, Keys, Objects, Prefix, PresignPut, Presigned, Scope, Uri, s3};
use axum::Router;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jiff::{SignedDuration, Timestamp};
use md5::{Digest, Md5};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder, S3CopyIfNotExists},
    path::Path,
};

const BUCKET: &str = "aloft-data";

/// An endpoint on a real socket, and its store.
struct Server {
    objects: Objects,
    url: String,
    directory: tempfile::TempDir,
}

impl Deref for Server {
    type Target = Objects;

    fn deref(&self) -> &Objects {
        &self.objects
    }
}

impl Server {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let directory = tempfile::tempdir().expect("a directory");
        let objects = Objects::local(directory.path(), BUCKET, &url, Keys::new([42; 32])).expect("a store");
        let endpoint = s3::endpoint(objects.with_max_object_bytes(32 << 20));
        let router = s3::routes(BUCKET)
            .iter()
            .fold(Router::new(), |router, route| router.route_service(route, endpoint.clone()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { objects, url, directory }
    }

    fn client(&self) -> AmazonS3 {
        self.client_with(&Claims::full("test"))
    }

    fn client_with(&self, claims: &Claims) -> AmazonS3 {
        let credentials = self.keys().derive(claims).expect("credentials");
        AmazonS3Builder::new()
            .with_endpoint(&self.url)
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_access_key_id(credentials.access_key_id)
            .with_secret_access_key(credentials.secret_access_key)
            .with_copy_if_not_exists(S3CopyIfNotExists::Header("if-none-match".to_owned(), "*".to_owned()))
            .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
            .build()
            .expect("a client")
    }

    fn name(&self, key: &str) -> Uri {
        self.uri(key).expect("a name")
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The status and S3 error code.
    fn error(&self) -> (u16, String) {
        let text = String::from_utf8_lossy(&self.body);
        let code = text.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next()).unwrap_or_default();
        (self.status.as_u16(), code.to_owned())
    }
}

async fn send(method: Method, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).expect("a request");
    let response = client.request(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn put(presigned: &Presigned, body: &'static [u8]) -> Answer {
    let headers: Vec<_> = presigned.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    send(Method::PUT, &presigned.url, &headers, body).await
}

fn hour() -> Duration {
    Duration::from_secs(3600)
}

fn md5(content: &[u8]) -> [u8; 16] {
    Md5::digest(content).into()
}

/// Bytes that differ at every place, so that a lost or moved part shows.
fn noise(length: usize) -> Bytes {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_client_does_everything() {
    let server = Server::start().await;
    let client = server.client();
    let path = Path::from("runs/r1/a0/outputs.pb");

    client.put(&path, Bytes::from_static(b"hello, world").into()).await.expect("put");
    assert_eq!(client.get(&path).await.expect("get").bytes().await.expect("bytes"), "hello, world");
    assert_eq!(client.get_range(&path, 7..12).await.expect("range"), "world");
    let suffix = GetOptions { range: Some(GetRange::Suffix(5)), ..Default::default() };
    let suffix = client.get_opts(&path, suffix).await.expect("suffix");
    assert_eq!(suffix.range, 7..12);
    let meta = client.head(&path).await.expect("head");
    assert_eq!(meta.size, 12);
    let ours = server.head(&server.name("runs/r1/a0/outputs.pb")).await.expect("head").expect("there");
    assert_eq!(meta.e_tag.as_deref(), Some(format!("\"{}\"", ours.etag).as_str()));
    let beyond = client.get_range(&path, 20..30).await.expect_err("beyond the end");
    assert!(beyond.to_string().contains("416") || format!("{beyond:?}").contains("Range"), "{beyond:?}");

    let unchanged = GetOptions { if_none_match: meta.e_tag.clone(), ..Default::default() };
    let unchanged = client.get_opts(&path, unchanged).await.expect_err("unchanged");
    assert!(matches!(unchanged, object_store::Error::NotModified { .. }), "{unchanged:?}");
    let changed = GetOptions { if_match: Some("\"other\"".to_owned()), ..Default::default() };
    let changed = client.get_opts(&path, changed).await.expect_err("changed");
    assert!(matches!(changed, object_store::Error::Precondition { .. }), "{changed:?}");

    let create = client.put_opts(&path, Bytes::new().into(), PutMode::Create.into()).await.expect_err("exists");
    assert!(matches!(create, object_store::Error::AlreadyExists { .. }), "{create:?}");
    let fresh = Path::from("runs/r1/a0/fresh");
    client.put_opts(&fresh, Bytes::new().into(), PutMode::Create.into()).await.expect("created");

    let copy = Path::from("runs/r1/a1/copy");
    for _ in 0..2 {
        client.copy(&path, &copy).await.expect("copied");
    }
    let refused = client.copy_if_not_exists(&path, &copy).await.expect_err("exists");
    assert!(matches!(refused, object_store::Error::AlreadyExists { .. }), "{refused:?}");
    client.put(&path, Bytes::from_static(b"new").into()).await.expect("overwritten");
    assert_eq!(client.get(&copy).await.expect("get").bytes().await.expect("bytes"), "hello, world");

    let mut listed: Vec<_> = client.list(Some(&Path::from("runs"))).try_collect().await.expect("list");
    listed.sort_by(|a, b| a.location.cmp(&b.location));
    let names: Vec<_> = listed.iter().map(|meta| meta.location.as_ref()).collect();
    assert_eq!(names, ["runs/r1/a0/fresh", "runs/r1/a0/outputs.pb", "runs/r1/a1/copy"]);
    let level = client.list_with_delimiter(Some(&Path::from("runs/r1"))).await.expect("list");
    assert_eq!(level.common_prefixes, [Path::from("runs/r1/a0"), Path::from("runs/r1/a1")]);
    assert!(level.objects.is_empty());

    client.delete(&copy).await.expect("deleted");
    let gone = client.head(&copy).await.expect_err("gone");
    assert!(matches!(gone, object_store::Error::NotFound { .. }), "{gone:?}");
    let doomed = futures::stream::iter([Ok(path.clone()), Ok(fresh.clone())]).boxed();
    let deleted: Vec<_> = client.delete_stream(doomed).try_collect().await.expect("deleted");
    assert_eq!(deleted.len(), 2);
    assert!(!server.list(&server.root().expect("root"), 10).await.expect("list").truncated);
    assert!(server.list(&server.root().expect("root"), 10).await.expect("list").entries.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_stream() {
    let server = Server::start().await;
    let client = server.client();
    let content = noise(12 << 20);

    let path = Path::from("raw/multipart");
    let upload = client.put_multipart(&path).await.expect("upload");
    let mut writer = WriteMultipart::new_with_chunk_size(upload, 5 << 20);
    writer.write(&content);
    writer.finish().await.expect("completed");
    let uri = server.name("raw/multipart");
    assert_eq!(server.content_md5(&uri).await.expect("md5"), md5(&content));
    assert_eq!(client.get_range(&path, 5_242_870..5_242_890).await.expect("range"), content[5_242_870..5_242_890]);

    let path = Path::from("raw/single");
    client.put(&path, content.clone().into()).await.expect("put");
    assert_eq!(client.get(&path).await.expect("get").bytes().await.expect("bytes"), content);
    let exists = client.put_opts(&path, content.clone().into(), PutMode::Create.into()).await.expect_err("exists");
    assert!(matches!(exists, object_store::Error::AlreadyExists { .. }), "{exists:?}");
    let created = Path::from("raw/created");
    client.put_opts(&created, content.clone().into(), PutMode::Create.into()).await.expect("created");
    assert_eq!(server.content_md5(&server.name("raw/created")).await.expect("md5"), md5(&content));

    let mut aborted = client.put_multipart_opts(&path, PutMultipartOptions::default()).await.expect("upload");
    aborted.put_part(noise(5 << 20).into()).await.expect("a part");
    aborted.abort().await.expect("aborted");

    let too_large = client.put(&path, noise((32 << 20) + 1).into()).await.expect_err("too large");
    assert!(format!("{too_large:?}").contains("EntityTooLarge"), "{too_large:?}");

    let swept = server.sweep_multipart(Timestamp::now() + SignedDuration::from_hours(1)).await.expect("swept");
    assert_eq!((swept.uploads, swept.unfinished_files), (1, 0), "only the completed upload's record was left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_round_trip() {
    let server = Server::start().await;
    let client = server.client();
    let keys = [
        "dt=2026-01-02/part 0+1.parquet",
        "ünïcödé/日本語/😀.txt",
        "a&b?c=d;e:f,g@h$i'(j)!*~[k]{l}|^`\"<m>",
        "100%/50%25/%2F",
        "hash#1/x#2#",
        ".hidden/..dots../...",
        "trailing. / space",
    ];
    for key in keys {
        let content = Bytes::from(key);
        let uri = server.name(key);
        let presigned = server
            .presign_put(&uri, &PresignPut { expires: hour(), ..Default::default() }, Timestamp::now())
            .expect("presigned");
        assert_eq!(send(Method::PUT, &presigned.url, &[], content.clone()).await.status, StatusCode::OK, "{key}");
        assert_eq!(server.get(&uri, 1000).await.expect("get"), content, "{key}");
        let presigned = server.presign_get(&uri, hour(), Timestamp::now()).expect("presigned");
        assert_eq!(send(Method::GET, &presigned.url, &[], "").await.body, content, "{key}");
        let listed = server.list(&uri.parent().expect("a parent"), 10).await.expect("list");
        assert!(listed.entries.iter().any(|entry| entry.uri == uri), "{key}");
        let through_client = client.get(&Path::parse(key).expect("a path")).await.expect("get");
        assert_eq!(through_client.bytes().await.expect("bytes"), content, "{key}");
    }
    let mut listed: Vec<String> =
        client.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.expect("list");
    listed.sort_unstable();
    let mut expected = keys.map(str::to_owned);
    expected.sort_unstable();
    assert_eq!(listed, expected);

    for key in ["../../../etc/passwd", "a/./b", "a\\b", "a\nb", "a//b"] {
        // The client itself would not; `Path::from` hides the dots.
        let Ok(path) = Path::parse(key) else { continue };
        let refused = client.put(&path, Bytes::new().into()).await.expect_err(key);
        assert!(format!("{refused:?}").contains("InvalidArgument"), "{key}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_and_a_directory_cannot_share_a_name() {
    let server = Server::start().await;
    let client = server.client();
    let content = || Bytes::from_static(b"x").into();
    client.put(&Path::from("a/b"), content()).await.expect("put");
    for below in ["a/b/c", "a/b/c/d"] {
        let refused = client.put(&Path::from(below), content()).await.expect_err("below an object");
        assert!(format!("{refused:?}").contains("ObjectNameConflict"), "{refused:?}");
        let absent = client.get(&Path::from(below)).await.expect_err("absent");
        assert!(matches!(absent, object_store::Error::NotFound { .. }), "{absent:?}");
        assert!(server.head(&server.name(below)).await.expect("head").is_none());
        server.delete(&server.name(below)).await.expect("nothing to delete");
    }
    assert!(server.list(&server.name("a/b"), 10).await.expect("list").entries.is_empty());
    assert_eq!(client.get(&Path::from("a/b")).await.expect("get").bytes().await.expect("bytes"), "x");

    client.delete(&Path::from("a/b")).await.expect("deleted");
    client.put(&Path::from("a/b/c"), content()).await.expect("put");
    for mode in [PutMode::Overwrite, PutMode::Create] {
        let refused = client.put_opts(&Path::from("a/b"), content(), mode.into()).await.expect_err("above an object");
        assert!(format!("{refused:?}").contains("ObjectNameConflict"), "{refused:?}");
    }
    let absent = client.head(&Path::from("a/b")).await.expect_err("absent");
    assert!(matches!(absent, object_store::Error::NotFound { .. }), "{absent:?}");
    client.delete(&Path::from("a/b/c")).await.expect("deleted");
    client.put(&Path::from("a/b"), content()).await.expect("the directory went with its last object");

    let long = client.put(&Path::from("x".repeat(300)), content()).await.expect_err("too long");
    assert!(format!("{long:?}").contains("KeyTooLongError"), "{long:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_stay_in_their_scope() {
    let server = Server::start().await;
    for key in ["p/d/shared", "p/d/runs/r1/x", "p/d/runs/r10/x", "q/other"] {
        server.put(&server.name(key), Bytes::from(key)).await.expect("put");
    }
    let claims = Claims {
        scope: Scope {
            read: vec![Prefix::below(&server.name("p/d"))],
            write: vec![Prefix::below(&server.name("p/d/runs/r1"))],
        },
        subject: "r1/a0/1".to_owned(),
        expires: None,
    };
    let client = server.client_with(&claims);
    let denied = |error: object_store::Error| {
        assert!(format!("{error:?}").contains("AccessDenied"), "{error:?}");
    };
    client.get(&Path::from("p/d/runs/r10/x")).await.expect("reads its project");
    client.put(&Path::from("p/d/runs/r1/y"), Bytes::new().into()).await.expect("writes its run");
    let listed: Vec<_> = client.list(Some(&Path::from("p/d"))).try_collect().await.expect("lists its project");
    assert_eq!(listed.len(), 4);

    denied(client.get(&Path::from("q/other")).await.expect_err("another project"));
    denied(client.get(&Path::from("q/absent")).await.expect_err("another project, whether it exists or not"));
    denied(client.put(&Path::from("p/d/runs/r10/x"), Bytes::new().into()).await.expect_err("another run"));
    denied(client.put_multipart(&Path::from("p/d/shared")).await.expect_err("above its run"));
    denied(client.copy(&Path::from("q/other"), &Path::from("p/d/runs/r1/z")).await.expect_err("copying out"));
    denied(client.copy(&Path::from("p/d/shared"), &Path::from("p/d/other")).await.expect_err("copying in"));
    denied(client.list(None).try_collect::<Vec<_>>().await.expect_err("the whole bucket"));
    denied(client.list(Some(&Path::from("q"))).try_collect::<Vec<_>>().await.expect_err("another project"));
    let doomed = futures::stream::iter([Ok(Path::from("p/d/runs/r1/x")), Ok(Path::from("q/other"))]).boxed();
    let deleted: Vec<_> = client.delete_stream(doomed).collect().await;
    assert!(deleted[0].is_ok() && deleted[1].is_err(), "{deleted:?}");
    assert!(server.head(&server.name("q/other")).await.expect("head").is_some());

    let past = u64::try_from(Timestamp::now().as_second()).expect("after 1970") - 1;
    let expired = server.client_with(&Claims { expires: Some(past), ..claims.clone() });
    let refused = expired.get(&Path::from("p/d/shared")).await.expect_err("expired");
    assert!(format!("{refused:?}").contains("ExpiredToken"), "{refused:?}");

    let stranger = Keys::new([43; 32]).derive(&claims).expect("credentials");
    let forged = AmazonS3Builder::new()
        .with_endpoint(&server.url)
        .with_allow_http(true)
        .with_bucket_name(BUCKET)
        .with_access_key_id(stranger.access_key_id)
        .with_secret_access_key(stranger.secret_access_key)
        .build()
        .expect("a client");
    let refused = forged.get(&Path::from("p/d/shared")).await.expect_err("forged");
    assert!(format!("{refused:?}").contains("InvalidAccessKeyId"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presigned_urls_keep_their_promises() {
    let server = Server::start().await;
    let now = Timestamp::now();
    let uri = server.name("uploads/abc/fast.tar.gz");
    let content: &[u8] = b"a code bundle";
    let terms = PresignPut {
        expires: hour(),
        content_md5: Some(md5(content)),
        content_length: Some(content.len() as u64),
        metadata: [("flyteContentMD5".to_owned(), "abc".to_owned())].into(),
        ..Default::default()
    };
    let presigned = server.presign_put(&uri, &terms, now).expect("presigned");
    assert!(!format!("{presigned:?}").contains("Signature="));
    let answer = put(&presigned, content).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    assert!(answer.headers.contains_key("etag"));
    assert_eq!(server.get(&uri, 100).await.expect("get"), content);

    // The same URL for other content, and other ways around what was signed.
    assert_eq!(put(&presigned, b"a code bundlf").await.error(), (400, "BadDigest".to_owned()));
    let shorter = Presigned { headers: Default::default(), ..presigned.clone() };
    assert_eq!(put(&shorter, content).await.error(), (403, "SignatureDoesNotMatch".to_owned()));
    let tampered = |from: &str, to: &str| Presigned { url: presigned.url.replacen(from, to, 1), ..presigned.clone() };
    for (from, to) in [("/abc/", "/abd/"), ("X-Amz-Expires=3600", "X-Amz-Expires=36000"), (BUCKET, "aloft-datb")] {
        let answer = put(&tampered(from, to), content).await;
        let expected = if from == BUCKET { (404, String::new()) } else { (403, "SignatureDoesNotMatch".to_owned()) };
        assert_eq!(answer.error(), expected, "{from}");
    }
    let last = if presigned.url.ends_with('0') { "1" } else { "0" };
    let forged = Presigned { url: format!("{}{last}", &presigned.url[..presigned.url.len() - 1]), ..presigned.clone() };
    assert_eq!(put(&forged, content).await.error(), (403, "SignatureDoesNotMatch".to_owned()));
    assert_eq!(send(Method::GET, &presigned.url, &[], "").await.status, StatusCode::FORBIDDEN);
    let query_more = Presigned { url: format!("{}&uploads", presigned.url), ..presigned.clone() };
    assert_eq!(put(&query_more, content).await.error(), (403, "SignatureDoesNotMatch".to_owned()));

    let early = now - SignedDuration::from_secs(7201);
    let expired = server.presign_put(&uri, &terms, early).expect("presigned");
    let answer = put(&expired, content).await;
    assert_eq!(answer.error(), (403, "AccessDenied".to_owned()));
    assert!(String::from_utf8_lossy(&answer.body).contains("expired"));

    // A header that the signer did not see may not turn the write into a copy.
    server.put(&server.name("secret"), Bytes::from_static(b"secret")).await.expect("put");
    let open_terms = PresignPut { expires: hour(), ..Default::default() };
    let open = server.presign_put(&uri, &open_terms, now).expect("presigned");
    let source = format!("{BUCKET}/secret");
    let answer = send(Method::PUT, &open.url, &[("x-amz-copy-source", &source)], "").await;
    assert_eq!(answer.error(), (403, "AccessDenied".to_owned()));
    let wrong_hash = "0".repeat(64);
    let answer = send(Method::PUT, &open.url, &[("x-amz-content-sha256", &wrong_hash)], "x").await;
    assert_eq!(answer.error(), (400, "XAmzContentSHA256Mismatch".to_owned()));
    let answer = send(Method::PUT, &open.url, &[("content-md5", "not base64")], "x").await;
    assert_eq!(answer.error(), (400, "InvalidDigest".to_owned()));
    assert_eq!(server.get(&uri, 100).await.expect("get"), content, "none of it changed anything");

    let read = server.presign_view(&uri, "text/html", hour(), now).expect("presigned");
    let answer = send(Method::GET, &read.url, &[("range", "bytes=2-5")], "").await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::PARTIAL_CONTENT, &b"code"[..]));
    assert_eq!(answer.headers["content-range"], "bytes 2-5/13");
    assert_eq!(answer.headers["content-type"], "text/html");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    let etag = answer.headers["etag"].to_str().expect("text").to_owned();
    let answer = send(Method::GET, &read.url, &[("if-none-match", &etag)], "").await;
    assert_eq!(answer.status, StatusCode::NOT_MODIFIED);
    let answer = send(Method::GET, &read.url, &[("range", "bytes=99-")], "").await;
    assert_eq!(answer.error(), (416, "InvalidRange".to_owned()));
    let missing = server.presign_get(&server.name("missing"), hour(), now).expect("presigned");
    assert_eq!(send(Method::GET, &missing.url, &[], "").await.error(), (404, "NoSuchKey".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_turned_away() {
    let server = Server::start().await;
    server.put(&server.name("x"), Bytes::from_static(b"x")).await.expect("put");
    let url = format!("{}/{BUCKET}/x", server.url);
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let answer = send(method.clone(), &url, &[], "").await;
        assert_eq!(answer.error(), (403, "AccessDenied".to_owned()), "{method}");
    }
    let list = format!("{}/{BUCKET}?list-type=2", server.url);
    assert_eq!(send(Method::GET, &list, &[], "").await.error(), (403, "AccessDenied".to_owned()));
    let answer = send(Method::GET, &url, &[("authorization", "AWS someone:c2lnbmF0dXJl"), ("date", "x")], "").await;
    assert_eq!(answer.error(), (403, "InvalidAccessKeyId".to_owned()));
    let form = [("content-type", "multipart/form-data; boundary=b")];
    let field = "--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nx\r\n--b--\r\n";
    let answer = send(Method::POST, &format!("{}/{BUCKET}", server.url), &form, field).await;
    assert!(answer.status.is_client_error(), "{:?}", answer.status);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_listings_page() {
    let server = Server::start().await;
    let data = server.directory.path().join(BUCKET).join("many");
    std::fs::create_dir_all(&data).expect("a directory");
    for number in 0..2345 {
        std::fs::write(data.join(format!("{number:05}")), "x").expect("a file");
    }
    let names: Vec<_> =
        server.client().list(None).map_ok(|m| m.location.to_string()).try_collect().await.expect("list");
    assert_eq!(names.len(), 2345);
    assert!(names.is_sorted());
    let first = server.list(&server.name("many"), 10).await.expect("list");
    assert!(first.truncated && first.entries.len() == 10);
    assert_eq!(server.delete_prefix(&server.name("man")).await.expect("deleted"), 0);
    assert_eq!(server.delete_prefix(&server.name("many")).await.expect("deleted"), 2345);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creators_one_wins() {
    let server = Server::start().await;
    let client = Arc::new(server.client());
    let attempts = (0..16).map(|number: u8| {
        let client = client.clone();
        async move {
            // Some small, some large enough to be written aside first.
            let content = vec![number; if number.is_multiple_of(2) { 10 } else { 3 << 20 }];
            let result = client.put_opts(&Path::from("one"), content.into(), PutMode::Create.into()).await;
            result.is_ok().then_some(number)
        }
    });
    let winners: Vec<u8> = futures::future::join_all(attempts).await.into_iter().flatten().collect();
    let content = server.get(&server.name("one"), 4 << 20).await.expect("get");
    assert_eq!(winners, [content[0]]);
    assert!(content.iter().all(|byte| *byte == content[0]));
}

#[tokio::test]
async fn a_store_in_memory_reads_and_bounds() {
    let keys = Keys::new([1; 32]);
    let objects = Objects::memory("bucket", "http://localhost", keys).expect("a store");
    let uri = objects.uri("a/b").expect("a name");
    objects.put_new(&uri, Bytes::from_static(b"0123456789")).await.expect("put");
    assert!(objects.put_new(&uri, Bytes::new()).await.is_err());
    assert_eq!(objects.get_range(&uri, 2..4).await.expect("range"), "23");
    assert_eq!(objects.get_range(&uri, 8..40).await.expect("range"), "89");
    assert!(objects.get_range(&uri, 10..11).await.is_err());
    assert!(objects.get(&uri, 9).await.is_err());
    assert!(objects.get(&"s3://other/a".parse().expect("a URI"), 9).await.is_err());
}
