//! Lists a bucket in the format of Azure Blob Storage. Objects are read as in Google Cloud Storage.

use super::http::{HttpAnswer, HttpRequest, escaped};
use super::{ListingOddity, State};

impl State {
    /// One page of a container's names. The marker is the name after which the page begins.
    pub(super) fn list_azure(&self, container: &str, request: &HttpRequest) -> HttpAnswer {
        let prefix = request.parameter("prefix").unwrap_or_default();
        let delimiter = request.parameter("delimiter").filter(|delimiter| !delimiter.is_empty());
        let from = request.parameter("startFrom").unwrap_or_default();
        let asked = request.parameter("maxresults").and_then(|count| count.parse().ok());
        let most = self.page_size.unwrap_or(5000).min(asked.unwrap_or(5000));
        let (mut blobs, mut last, mut next) = (String::new(), String::new(), String::new());
        let (mut folder, mut count) = (String::new(), 0);
        let names = self.names(container, request.parameter("marker"), prefix);
        for (key, stored) in names.filter(|(key, _)| key.as_str() >= from) {
            let below = delimiter.and_then(|delimiter| key[prefix.len()..].find(delimiter));
            let within = below.map(|at| key[..prefix.len() + at + 1].to_owned());
            if within.as_ref().is_none_or(|within| *within != folder) {
                if count == most {
                    next = last;
                    break;
                }
                count += 1;
                blobs += &match &within {
                    Some(within) => format!("<BlobPrefix><Name>{}</Name></BlobPrefix>", escaped(within)),
                    None => format!(
                        "<Blob><Name>{}</Name><Properties><Last-Modified>Mon, 23 Nov 2026 00:00:00 GMT</Last-Modified>\
                         <Etag>{}</Etag><Content-Length>{}</Content-Length><Content-Type>image/png</Content-Type>\
                         </Properties></Blob>",
                        escaped(&key),
                        stored.etag(),
                        stored.bytes.len()
                    ),
                };
                folder = within.unwrap_or_default();
            }
            last = key;
        }
        if let Some(oddity @ ListingOddity::FirstHas(..)) = self.odd_listing {
            oddity.change(&mut blobs, &mut None, &mut false);
        }
        let body = format!(
            "<?xml version='1.0' encoding='utf-8'?><EnumerationResults ContainerName='{container}'><Blobs>{blobs}</Blobs>\
             <NextMarker>{}</NextMarker></EnumerationResults>",
            escaped(&next)
        );
        HttpAnswer::xml(200, body)
    }
}
