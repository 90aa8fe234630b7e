"""What tests of several rooms share: real certificates, real servers, no mocks."""
