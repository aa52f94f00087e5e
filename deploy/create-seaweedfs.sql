-- Run once by the image when its volume is made: the names of SeaweedFS's objects stand in a database of their own.
CREATE DATABASE seaweedfs TEMPLATE template0;
