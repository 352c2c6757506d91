//! What is refused, by its documented code and its field.

use crate::harness::Host;

#[tokio::test]
async fn a_query_that_asks_for_something_else_is_refused() {
    let host = Host::start().await;
    let (customer, admin) = (host.customer().await, host.admin());
    for (path, param) in [
        ("/usage?customer=999", "customer"),
        ("/usage?customer_id=1&since=2027-01-31T00:00:00Z", "since"),
        ("/usage?after=1", "after"),
        ("/usage?limit=1", "limit"),
        ("/usage?customer_id=one", "customer_id"),
        ("/usage/requests?customer=1", "customer"),
        ("/usage/requests?limits=1", "limits"),
        ("/api/keys?customer=1", "customer"),
        ("/customers?customer_id=1", "customer_id"),
        ("/customers/1/transfers?since=2027-01-31T00:00:00Z", "since"),
        ("/admin/audit?key=1", "key"),
    ] {
        let reply = admin.get(path).await;
        assert_eq!(
            reply.body["error"]["param"], param,
            "{path}: {}",
            reply.body
        );
        assert_eq!(reply.expect_error(422), "invalid_request", "{path}");
    }
    let reply = customer.get("/usage/requests?since=2027-01-31").await;
    assert_eq!(reply.expect_error(422), "invalid_request");
}
