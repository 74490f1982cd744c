plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "com.example.classifier"
    compileSdk = 35
    defaultConfig {
        applicationId = "com.example.classifier"
        minSdk = 28 // ImageDecoder
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
    androidResources { noCompress += "tflite" } // it is mapped into memory
}

dependencies {
    implementation("org.tensorflow:tensorflow-lite:2.17.0")
}
